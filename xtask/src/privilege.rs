//! How a command that needs root gets it.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IsTerminal as _},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
};

use crate::shell;

/// The capability without which the kernel refuses uprobes and BPF programs: `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;

/// What this process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// It is root, with the capabilities that tracing needs.
    Root,
    /// It may become root through sudo.
    Sudo,
    /// Neither.
    Absent {
        /// Why, and what to do.
        reason: String,
    },
}

impl Privilege {
    /// Finds out, asking for sudo's password if there is a terminal to ask on.
    pub(crate) fn acquire() -> Self {
        if is_root() {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            return if has_capability(&status, CAP_SYS_ADMIN) {
                Self::Root
            } else {
                let reason = "root, but without CAP_SYS_ADMIN; run the container with \
                              --privileged or --cap-add SYS_ADMIN";
                Self::Absent { reason: reason.to_owned() }
            };
        }
        if shell::find_program("sudo").is_none() {
            return Self::Absent { reason: "not root and no sudo; run as root".to_owned() };
        }
        let mut sudo = Command::new("sudo");
        sudo.args(if io::stdin().is_terminal() { ["-v"].as_slice() } else { &["-n", "true"] });
        match sudo.stderr(Stdio::inherit()).status() {
            Ok(status) if status.success() => Self::Sudo,
            Ok(_) | Err(_) => {
                Self::Absent { reason: "not root and sudo refused; run as root".to_owned() }
            }
        }
    }

    /// A command that runs `program` as root; without privilege, as whoever runs xtask.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg(program);
                command
            }
            Self::Root | Self::Absent { .. } => Command::new(program),
        }
    }
}

/// Whether this process's effective user is root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

/// Whether `/proc/PID/status` lists the capability as effective.
fn has_capability(status: &str, capability: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << capability) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_is_read_from_the_effective_set() {
        let contained = "CapPrm:\t000001ffffffffff\nCapEff:\t00000000a80425fb\n";
        let full = "CapEff:\t000001ffffffffff\n";

        assert!(!has_capability(contained, CAP_SYS_ADMIN));
        assert!(has_capability(full, CAP_SYS_ADMIN));
        assert!(!has_capability("", CAP_SYS_ADMIN));
    }
}
