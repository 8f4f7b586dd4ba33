//! Whether this process may trace.
//!
//! Asked before anything is opened or loaded: the kernel's own refusal names a BPF map, which
//! helps nobody.

use thiserror::Error;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The user may not trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "tracing needs root, and this process has neither CAP_SYS_ADMIN nor CAP_BPF with CAP_PERFMON; \
     run memtrace with sudo, in a container with --privileged"
)]
pub struct NotPrivileged;

/// Checks the capabilities of this process. What cannot be read is left to the kernel to refuse.
pub fn check() -> Result<(), NotPrivileged> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective(&status) {
        Some(bits) if !may_trace(bits) => Err(NotPrivileged),
        Some(_) | None => Ok(()),
    }
}

/// The effective capabilities in the text of `/proc/PID/status`, as bits.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn may_trace(capabilities: u64) -> bool {
    let has = |capability: u32| capabilities >> capability & 1 == 1;
    has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_or_bpf_with_perfmon_may_trace() {
        assert!(may_trace(1 << CAP_SYS_ADMIN));
        assert!(may_trace(1 << CAP_BPF | 1 << CAP_PERFMON));
        assert!(!may_trace(1 << CAP_BPF));
        assert!(!may_trace(0));
    }

    #[test]
    fn effective_capabilities_are_hexadecimal() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
