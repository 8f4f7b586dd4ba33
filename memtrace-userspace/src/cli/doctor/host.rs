//! What can be seen of this machine without changing it.

use std::fs;
use std::io;
use std::path::Path;

use memtrace_userspace::live::kernel_types::{KernelTypesError, kernel_offsets, require_features};
use memtrace_userspace::live::kernel_version::kernel_release;
use memtrace_userspace::live::loader::jit_is_on;
use memtrace_userspace::live::uprobe_multi::{self, Lacking};

/// The facts that [`super::checks`] judges. What could not be read is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// `uname -m`.
    pub(super) machine: &'static str,
    /// `uname -r`.
    pub(super) release: String,
    /// `uname -v`, which names the preemption model.
    pub(super) version: String,
    /// Effective capabilities of this process, as bits.
    pub(super) capabilities: Option<u64>,
    /// Whether the kernel describes its own types.
    pub(super) btf: Result<(), io::ErrorKind>,
    /// Whether it has what the kernel programs need.
    pub(super) features: Result<(), KernelTypesError>,
    /// Whether the kernel compiles BPF programs; not to be seen in a container.
    pub(super) bpf_jit: Option<bool>,
    /// `kernel.perf_event_paranoid`.
    pub(super) perf_event_paranoid: Option<i32>,
    /// The active lockdown mode, if the kernel has lockdown.
    pub(super) lockdown: Option<String>,
    /// Soft limit of locked memory in bytes; `None` is unlimited.
    pub(super) locked_memory_bytes: Option<u64>,
    /// Number of the PMU that makes uprobes.
    pub(super) uprobe_pmu: Option<u32>,
    /// Whether many uprobes can share a link; `Err` if that could not be found out.
    pub(super) multi_links: Result<Result<(), Lacking>, io::ErrorKind>,
    /// Whether the kernel's functions can be watched; `Err` as the kernel says it.
    pub(super) watch_functions: Result<(), String>,
}

impl Host {
    /// Looks at `/proc` and `/sys`, and asks the kernel for a link that it has to refuse.
    pub(super) fn look() -> Host {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let release = kernel_release();
        let btf = fs::read("/sys/kernel/btf/vmlinux");
        let bytes = btf.as_deref().ok();
        Host {
            machine: std::env::consts::ARCH,
            watch_functions: match bytes {
                Some(bytes) => uprobe_multi::can_watch_functions(bytes).map_err(|e| e.to_string()),
                None => Err("the kernel does not describe its types".to_owned()),
            },
            features: require_features(bytes, &release)
                .and_then(|()| bytes.map_or(Ok(()), |bytes| kernel_offsets(bytes).map(drop))),
            release,
            version: read("/proc/sys/kernel/version").unwrap_or_default(),
            capabilities: capabilities(&status),
            btf: btf.map(drop).map_err(|error| error.kind()),
            bpf_jit: jit_is_on(),
            perf_event_paranoid: read("/proc/sys/kernel/perf_event_paranoid")
                .and_then(|text| text.parse().ok()),
            lockdown: read("/sys/kernel/security/lockdown").and_then(|text| active(&text)),
            locked_memory_bytes: locked_memory(&limits),
            uprobe_pmu: read("/sys/bus/event_source/devices/uprobe/type")
                .and_then(|text| text.parse().ok()),
            multi_links: uprobe_multi::support().map_err(|error| error.kind()),
        }
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The `CapEff` line of `/proc/PID/status`.
fn capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `integrity` of `none [integrity] confidentiality`.
fn active(lockdown: &str) -> Option<String> {
    let start = lockdown.split_once('[')?.1;
    Some(start.split_once(']')?.0.to_owned())
}

/// The soft limit in the line `Max locked memory` of `/proc/PID/limits`.
fn locked_memory(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_hexadecimal() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn active_lockdown_is_the_one_in_brackets() {
        assert_eq!(active("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(active(""), None);
    }

    #[test]
    fn unlimited_memory_is_no_limit() {
        let line = "Max locked memory         8388608              8388608              bytes\n";
        assert_eq!(locked_memory(line), Some(8 << 20));
        let line = "Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(locked_memory(line), None);
    }
}
