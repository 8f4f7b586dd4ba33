//! How much memory a process can still have: its control groups' limits, and the machine's.
//!
//! ```text
//!   /proc/PID/cgroup   0::/system.slice/api.service     version 2: memory.max, memory.current
//!                      4:memory:/docker/12ab            version 1: memory.limit_in_bytes, …
//! ```
//!
//! Every group above the process's own limits it too. What counts is where least is left.

use std::fs;
use std::path::{Path, PathBuf};

use crate::record::{LimitKind, Pid, Record, Time};

const MOUNT: &str = "/sys/fs/cgroup";
/// Groups deeper than this are not looked at.
const DEPTH: usize = 32;

/// A limit and what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    kind: LimitKind,
    limit_bytes: u64,
    used_bytes: u64,
}

impl Limit {
    fn left(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// The limit of which least is left, as a record; none where nothing can be read.
pub(crate) fn sample(pid: Pid, time: Time) -> Option<Record> {
    let Limit { kind, limit_bytes, used_bytes } = tightest(pid)?;
    Some(Record::MemoryLimit { time, pid, kind, limit_bytes, used_bytes })
}

/// How much memory a process can still have; none where nothing can be read.
pub(crate) fn left_bytes(pid: Pid) -> Option<u64> {
    tightest(pid).as_ref().map(Limit::left)
}

fn tightest(pid: Pid) -> Option<Limit> {
    let machine = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(machine);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.0)).unwrap_or_default();
    let limits = places(&groups).into_iter().flat_map(|place| {
        let root = place.root();
        let group = root.join(&place.path);
        let levels: Vec<PathBuf> = group.ancestors().take(DEPTH).map(Path::to_owned).collect();
        let below = levels.into_iter().take_while(move |level| level.starts_with(&root));
        below.filter_map(move |level| place.version.limit(&level)).collect::<Vec<_>>()
    });
    let total = machine.map_or(u64::MAX, |machine| machine.limit_bytes);
    // A group without a limit of its own has one that no machine reaches.
    let limits = limits.filter(|limit| limit.limit_bytes < total);
    machine.into_iter().chain(limits).min_by_key(Limit::left)
}

/// The files of a version of the kernel's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limit(self, group: &Path) -> Option<Limit> {
        let (limit, used) = match self {
            Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            Version::Two => ("memory.max", "memory.current"),
        };
        // `max` is no number: no limit.
        let number = |file| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
        let (limit_bytes, used_bytes) = (number(limit)?, number(used)?);
        Some(Limit { kind: LimitKind::Cgroup, limit_bytes, used_bytes })
    }
}

/// Where the memory of a process is counted.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    /// Below the mount, without a slash in front.
    path: String,
}

impl Place {
    fn root(&self) -> PathBuf {
        match self.version {
            Version::One => Path::new(MOUNT).join("memory"),
            Version::Two => PathBuf::from(MOUNT),
        }
    }
}

/// The places in the text of `/proc/PID/cgroup`.
fn places(text: &str) -> Vec<Place> {
    let place = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match (id, controllers) {
            ("0", "") => Version::Two,
            (_, controllers) if controllers.split(',').any(|name| name == "memory") => Version::One,
            _ => return None,
        };
        // A process outside the own namespace has a path that leads out of the mount.
        let is_outside = path.split('/').any(|part| part == "..");
        (!is_outside).then(|| Place { version, path: path.trim_start_matches('/').to_owned() })
    };
    text.lines().filter_map(place).collect()
}

/// The machine's memory, from the text of `/proc/meminfo`.
fn machine(text: &str) -> Option<Limit> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let (total, available) = (bytes("MemTotal")?, bytes("MemAvailable")?);
    Some(Limit {
        kind: LimitKind::Machine,
        limit_bytes: total,
        used_bytes: total.saturating_sub(available),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_found() {
        let text = "9:name=systemd:/\n4:cpu,memory:/docker/1:2\n0::/system.slice/api.service\n";

        let place = |version, path: &str| Place { version, path: path.to_owned() };
        let expected =
            [place(Version::One, "docker/1:2"), place(Version::Two, "system.slice/api.service")];
        assert_eq!(places(text), expected);
    }

    #[test]
    fn path_that_leads_out_of_the_mount_is_not_followed() {
        assert_eq!(places("0::/../../other\nmalformed\n4:memory\n"), []);
    }

    #[test]
    fn machine_has_what_is_neither_free_nor_can_be_made_free() {
        let text = "MemTotal:        8000 kB\nMemFree: 1 kB\nMemAvailable:    3000 kB\n";

        let expected =
            Limit { kind: LimitKind::Machine, limit_bytes: 8000 << 10, used_bytes: 5000 << 10 };
        assert_eq!(machine(text), Some(expected));
        assert_eq!(machine("MemTotal: many kB\n"), None);
    }

    #[test]
    fn own_process_has_a_limit() {
        let record = sample(Pid(std::process::id()), Time(7));

        let Some(Record::MemoryLimit { limit_bytes, used_bytes, .. }) = record else {
            panic!("Linux has /proc/meminfo: {record:?}");
        };
        assert!(limit_bytes > 0 && used_bytes > 0);
    }
}
