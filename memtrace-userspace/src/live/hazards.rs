//! What would harm a process if it were probed.
//!
//! In: what `/proc` says of the process, and the kernel's release. Out: the reason to leave the
//! process alone, if there is one. Which releases have which bug is known by [`KernelVersion`].

use super::kernel_version::KernelVersion;
use super::process::{ProcessInfo, Seccomp};
use super::tracer::TracerError;

/// Refuses a process that would crash or be killed on a kernel of this release (`uname -r`).
///
/// A release that is no version of Linux is taken to have no such bug: there is nothing to go by.
pub fn check(info: &ProcessInfo, release: &str) -> Result<(), TracerError> {
    let Some(version) = KernelVersion::parse(release) else { return Ok(()) };
    let (pid, kernel) = (info.identity.pid.0, release.to_owned());
    if info.has_shadow_stack && version.crashes_shadow_stacks() {
        return Err(TracerError::ShadowStack { pid, kernel });
    }
    if info.seccomp != Seccomp::Off && version.kills_filtered() {
        return Err(TracerError::Seccomp { pid, kernel });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::process::{self, ProcessInfo};
    use crate::record::Pid;

    /// This process, as if it had these.
    fn process_with(seccomp: Seccomp, has_shadow_stack: bool) -> ProcessInfo {
        let info =
            process::inspect(Pid(std::process::id())).expect("this process can be looked at");
        ProcessInfo { seccomp, has_shadow_stack, ..info }
    }

    fn refusal(info: &ProcessInfo, release: &str) -> Option<String> {
        let refused = check(info, release).err();
        assert!(refused.as_ref().is_none_or(TracerError::concerns_one_process), "{refused:?}");
        refused.map(|error| error.to_string())
    }

    #[test]
    fn filtered_process_is_refused_where_the_kernel_would_kill_it() {
        let pid = std::process::id();
        for seccomp in [Seccomp::Filter, Seccomp::Strict] {
            let info = process_with(seccomp, false);

            for release in ["6.11.0", "6.12.13", "6.13.2-amd64"] {
                let expected = format!(
                    "process {pid} filters its system calls (seccomp), and kernel {release} would \
                     kill it at the first return probe; update the kernel to 6.12.14, 6.13.3, 6.14 \
                     or later"
                );
                assert_eq!(refusal(&info, release), Some(expected));
            }
            for release in ["6.1.0-56-cloud-amd64", "6.10.14", "6.12.14", "6.13.3", "6.14.0", "7.0"]
            {
                assert_eq!(refusal(&info, release), None, "{release}");
            }
        }
    }

    #[test]
    fn process_with_a_shadow_stack_is_refused_where_it_would_crash() {
        let pid = std::process::id();
        let info = process_with(Seccomp::Off, true);

        for release in ["6.6.0", "6.8.0-31-generic", "6.10.14"] {
            let expected = format!(
                "process {pid} has a shadow stack (CET), and on kernel {release} a return probe \
                 would crash it; update the kernel to 6.11 or later"
            );
            assert_eq!(refusal(&info, release), Some(expected));
        }
        for release in ["6.5.13", "6.11.0", "6.12.1", "5.17.0"] {
            assert_eq!(refusal(&info, release), None, "{release}");
        }
    }

    #[test]
    fn process_with_neither_is_traced_on_every_kernel() {
        let info = process_with(Seccomp::Off, false);

        for release in ["6.8.0", "6.11.0", "6.12.1", "6.13.0", "6.18.44", "no version"] {
            assert_eq!(refusal(&info, release), None, "{release}");
        }
    }
}
