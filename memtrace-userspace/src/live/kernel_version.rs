//! The running kernel's version, and the bugs that are told by it.

/// A release of Linux. Distributions that hide the third number give 0 there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 in 6.12.117.
    pub major: u32,
    /// 12 in 6.12.117.
    pub minor: u32,
    /// 117 in 6.12.117.
    pub patch: u32,
}

impl KernelVersion {
    /// Linux `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        KernelVersion { major, minor, patch }
    }

    /// 6.12.117 of `6.12.117+deb12-amd64`, 5.17.0 of `5.17-rc1`; `None` without two numbers.
    pub fn parse(release: &str) -> Option<Self> {
        let end = release.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(release.len());
        let mut numbers = release.get(..end)?.split('.').map(str::parse);
        Some(KernelVersion {
            major: numbers.next()?.ok()?,
            minor: numbers.next()?.ok()?,
            patch: numbers.next().and_then(Result::ok).unwrap_or(0),
        })
    }

    /// Whether seccomp filters the system call that ends a return probe, and kills the process.
    ///
    /// Return probes make a system call since 6.11; seccomp lets it pass since 6.14, 6.13.3 and
    /// 6.12.14 (CVE-2025-21834). A distribution that has the fix and hides the third number is
    /// taken to be without: a process must not die of memtrace.
    pub fn kills_filtered(self) -> bool {
        match (self.major, self.minor) {
            (6, 11) => true,
            (6, 12) => self.patch < 14,
            (6, 13) => self.patch < 3,
            _ => false,
        }
    }

    /// Whether return probes crash processes with shadow stacks (CET).
    ///
    /// User space has these since 6.6; return probes keep to them since 6.11.
    pub fn crashes_shadow_stacks(self) -> bool {
        self.major == 6 && (6..11).contains(&self.minor)
    }
}

/// `uname -r`.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|release| release.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_off_any_release() {
        let cases = [
            ("6.18.44-fc-v595", Some(KernelVersion::new(6, 18, 44))),
            ("6.12.117+deb12-cloud-amd64", Some(KernelVersion::new(6, 12, 117))),
            ("6.1.0-56-cloud-amd64", Some(KernelVersion::new(6, 1, 0))),
            ("5.17-rc1", Some(KernelVersion::new(5, 17, 0))),
            ("6", None),
            ("linux", None),
            ("", None),
        ];
        for (release, version) in cases {
            assert_eq!(KernelVersion::parse(release), version, "{release}");
        }
    }

    #[test]
    fn filtered_processes_die_until_the_stable_release_with_the_fix() {
        let kills = |release| KernelVersion::parse(release).map(KernelVersion::kills_filtered);

        for release in ["6.11.0", "6.11.11", "6.12.13", "6.12-rc1", "6.13.2", "6.13.0-8-generic"] {
            assert_eq!(kills(release), Some(true), "{release}");
        }
        for release in ["6.10.14", "6.12.14", "6.12.117+deb12-amd64", "6.13.3", "6.14.0", "7.0"] {
            assert_eq!(kills(release), Some(false), "{release}");
        }
    }
}
