//! What the facts mean for memtrace.
//!
//! Pure: facts in, judgements out. Each judgement that is not `Ok` says what to do. The hazards
//! are kernel bugs that concern uprobes; they are told by version, so a distribution's backport
//! may have mended what is still named here, and the advice says so.

use memtrace_userspace::live::allocators::survey::{self, Survey};
use memtrace_userspace::live::kernel_types::{FEATURES, KernelTypesError};
use memtrace_userspace::live::kernel_version::KernelVersion;
use memtrace_userspace::live::process::{self, Seccomp};
use memtrace_userspace::record::Pid;
use memtrace_userspace::views::printable::{printable, printable_str};
use memtrace_userspace::views::quantity;

use super::host::Host;

/// Whether memtrace can work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Yes.
    Ok,
    /// Yes, and the user should know something.
    Warn,
    /// No.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// What it means.
    pub(super) verdict: Verdict,
    /// What was looked at.
    pub(super) subject: &'static str,
    /// What was found; printable.
    pub(super) finding: String,
    /// What to do, if something is to be done.
    pub(super) advice: Option<&'static str>,
}

/// What to do without privilege.
const RUN_WITH_SUDO: &str = "run with sudo; in a container, with --privileged";

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Judges the machine.
pub(super) fn host(host: &Host) -> Vec<Check> {
    let version = KernelVersion::parse(&host.release);
    let mut checks = vec![
        machine(host),
        kernel(host, version),
        privilege(host),
        btf(host),
        features(host),
        bpf_jit(host),
        uprobes(host),
        multi_links(host),
        watch_functions(host),
        perf_event_paranoid(host),
        lockdown(host),
        locked_memory(host),
    ];
    checks.extend(version.into_iter().flat_map(|version| hazards(host, version)));
    checks
}

/// Judges a process.
pub(super) fn process(host: &Host, pid: Pid) -> Vec<Check> {
    let subject = "process";
    let info = match process::inspect(pid) {
        Ok(info) => info,
        Err(error) => {
            let finding = printable_str(&error.to_string()).into_owned();
            return vec![Check { verdict: Verdict::Fail, subject, finding, advice: None }];
        }
    };
    let finding = format!("{} is {}", pid.0, printable(&info.exe));
    let mut checks = vec![ok(subject, finding)];
    if info.exe_is_deleted {
        checks.push(Check {
            verdict: Verdict::Warn,
            subject: "executable",
            finding: "was deleted or replaced since the process started".to_owned(),
            advice: Some("restart the process to be sure that names are right"),
        });
    }
    let version = KernelVersion::parse(&host.release);
    if info.seccomp != Seccomp::Off && version.is_some_and(KernelVersion::kills_filtered) {
        checks.push(Check {
            verdict: Verdict::Fail,
            subject: "seccomp",
            finding: "this kernel kills filtered processes at a return probe".to_owned(),
            advice: Some(
                "update the kernel to 6.12.14, 6.13.3, 6.14 or later; memtrace refuses to attach",
            ),
        });
    }
    if info.has_shadow_stack {
        let crashes = version.is_some_and(KernelVersion::crashes_shadow_stacks);
        checks.push(match crashes {
            true => Check {
                verdict: Verdict::Fail,
                subject: "shadow stack (CET)",
                finding: "this kernel crashes such processes at a return probe".to_owned(),
                advice: Some("update the kernel to 6.11 or later; memtrace refuses to attach"),
            },
            false => ok("shadow stack (CET)", "on; this kernel's return probes keep to it"),
        });
    }
    checks
}

/// Judges what was found in the process's files.
pub(super) fn allocators(survey: &Survey) -> Check {
    let subject = "allocator";
    let verdict = survey.verdict();
    let finding = verdict.to_string();
    match verdict {
        survey::Verdict::NoAllocator => {
            let advice = Some("name its functions with --probe (docs/probes.md)");
            Check { verdict: Verdict::Fail, subject, finding, advice }
        }
        survey::Verdict::Go | survey::Verdict::GoWithC => {
            Check { verdict: Verdict::Warn, subject, finding, advice: None }
        }
        survey::Verdict::Traceable => ok(subject, finding),
    }
}

fn ok(subject: &'static str, finding: impl Into<String>) -> Check {
    Check { verdict: Verdict::Ok, subject, finding: finding.into(), advice: None }
}

fn machine(host: &Host) -> Check {
    let subject = "machine";
    match host.machine {
        "x86_64" => ok(subject, "x86-64"),
        other => Check {
            verdict: Verdict::Fail,
            subject,
            finding: format!("{other}, and memtrace knows x86-64 only"),
            advice: Some("reports of traces from x86-64 machines work here"),
        },
    }
}

fn kernel(host: &Host, version: Option<KernelVersion>) -> Check {
    let subject = "kernel";
    let release = printable_str(&host.release).into_owned();
    match version {
        Some(_) => ok(subject, release),
        None => Check {
            verdict: Verdict::Warn,
            subject,
            finding: format!("release `{release}` has no version number, so no bug is known by it"),
            advice: Some("Linux 5.17 or later is needed"),
        },
    }
}

/// What the kernel programs need of the kernel: the same words as when `record` refuses.
fn features(host: &Host) -> Check {
    let subject = "kernel features";
    let fail = |finding: String, advice| Check {
        verdict: Verdict::Fail,
        subject,
        finding,
        advice: Some(advice),
    };
    match &host.features {
        Ok(()) => ok(subject, FEATURES.each_ref().map(|feature| feature.name).join(", ")),
        Err(KernelTypesError::Missing(missing)) => {
            fail(missing.to_string(), "use Linux 5.17 or later")
        }
        Err(error @ (KernelTypesError::Malformed { .. } | KernelTypesError::NoMember { .. })) => {
            fail(
                error.to_string(),
                "use a distribution's kernel, which has BTF and CONFIG_UPROBES=y; or update memtrace",
            )
        }
    }
}

fn bpf_jit(host: &Host) -> Check {
    let subject = "BPF compiler (JIT)";
    match host.bpf_jit {
        Some(false) => Check {
            verdict: Verdict::Fail,
            subject,
            finding: "off, and memtrace's programs need it".to_owned(),
            advice: Some("run `sysctl net.core.bpf_jit_enable=1` as root"),
        },
        Some(true) => ok(subject, "on"),
        None => ok(subject, "not to be seen from here; on unless somebody has turned it off"),
    }
}

fn privilege(host: &Host) -> Check {
    let subject = "privilege";
    if has(host, CAP_SYS_ADMIN) {
        ok(subject, "CAP_SYS_ADMIN")
    } else if may_load_programs(host) {
        Check {
            verdict: Verdict::Warn,
            subject,
            finding: "CAP_BPF and CAP_PERFMON, without CAP_SYS_ADMIN".to_owned(),
            advice: Some(
                "recent kernels want CAP_SYS_ADMIN for uprobes; use sudo if attaching fails",
            ),
        }
    } else {
        Check {
            verdict: Verdict::Fail,
            subject,
            finding: "neither CAP_SYS_ADMIN nor CAP_BPF and CAP_PERFMON".to_owned(),
            advice: Some(RUN_WITH_SUDO),
        }
    }
}

fn has(host: &Host, capability: u32) -> bool {
    host.capabilities.is_some_and(|bits| bits >> capability & 1 == 1)
}

fn may_load_programs(host: &Host) -> bool {
    has(host, CAP_SYS_ADMIN) || (has(host, CAP_BPF) && has(host, CAP_PERFMON))
}

fn btf(host: &Host) -> Check {
    let subject = "kernel types (BTF)";
    match host.btf {
        Ok(()) => ok(subject, "/sys/kernel/btf/vmlinux"),
        Err(kind) => Check {
            verdict: Verdict::Fail,
            subject,
            finding: format!("cannot read /sys/kernel/btf/vmlinux: {kind}"),
            advice: Some(
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions build them; mount /sys",
            ),
        },
    }
}

fn uprobes(host: &Host) -> Check {
    let subject = "uprobes";
    match host.uprobe_pmu {
        Some(number) => ok(subject, format!("PMU {number}")),
        None => Check {
            verdict: Verdict::Fail,
            subject,
            finding: "no /sys/bus/event_source/devices/uprobe/type".to_owned(),
            advice: Some("use a kernel with CONFIG_UPROBE_EVENTS=y; mount /sys"),
        },
    }
}

fn multi_links(host: &Host) -> Check {
    let subject = "uprobe_multi links";
    match host.multi_links {
        Ok(Ok(())) => ok(subject, "probes detach within a tenth of a second"),
        Ok(Err(lacking)) => Check {
            verdict: Verdict::Warn,
            subject,
            finding: format!("{lacking}; probes detach one by one, which takes seconds"),
            advice: Some("use Linux 6.10 or later where many short-lived children are traced"),
        },
        Err(kind) => Check {
            verdict: Verdict::Warn,
            subject,
            finding: format!("cannot load a program to find out: {kind}"),
            advice: Some(RUN_WITH_SUDO),
        },
    }
}

fn watch_functions(host: &Host) -> Check {
    let subject = "kernel functions (fentry)";
    match &host.watch_functions {
        Ok(()) => ok(subject, "can be watched: other processes pay nothing"),
        Err(error) if !may_load_programs(host) => Check {
            verdict: Verdict::Warn,
            subject,
            finding: format!("cannot load a program to find out: {}", printable_str(error)),
            advice: Some(RUN_WITH_SUDO),
        },
        Err(error) => Check {
            verdict: Verdict::Warn,
            subject,
            finding: format!(
                "cannot be watched ({}): while memtrace is attached, every system call on the host \
                 is a little slower",
                printable_str(error)
            ),
            advice: Some(
                "use a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y that is not locked down",
            ),
        },
    }
}

fn perf_event_paranoid(host: &Host) -> Check {
    let subject = "perf_event_paranoid";
    match host.perf_event_paranoid {
        Some(level) => ok(subject, format!("{level}; does not limit a privileged memtrace")),
        None => Check {
            verdict: Verdict::Fail,
            subject,
            finding: "absent, so the kernel has no perf events".to_owned(),
            advice: Some("use a kernel with CONFIG_PERF_EVENTS=y; mount /proc"),
        },
    }
}

fn lockdown(host: &Host) -> Check {
    let subject = "lockdown";
    match host.lockdown.as_deref() {
        None => ok(subject, "not in this kernel"),
        Some("confidentiality") => Check {
            verdict: Verdict::Fail,
            subject,
            finding: "confidentiality: BPF programs may not read memory".to_owned(),
            advice: Some("boot with lockdown=integrity, or without Secure Boot"),
        },
        Some(mode) => ok(subject, printable_str(mode)),
    }
}

fn locked_memory(host: &Host) -> Check {
    let finding = match host.locked_memory_bytes {
        Some(bytes) => format!("{}; from 5.11 on, BPF maps do not count", quantity::bytes(bytes)),
        None => "unlimited".to_owned(),
    };
    ok("locked memory", finding)
}

/// Known bugs of this kernel that concern what memtrace does.
fn hazards(host: &Host, version: KernelVersion) -> Vec<Check> {
    let since = |major, minor| version >= KernelVersion::new(major, minor, 0);
    let subject = "known bug";
    let mut checks = Vec::new();
    if since(6, 13) && host.version.contains("PREEMPT") {
        checks.push(ok(
            subject,
            "private stacks of tracing programs on preemptible kernels; memtrace's programs have none",
        ));
    }
    if version.kills_filtered() {
        checks.push(Check {
            verdict: Verdict::Warn,
            subject,
            finding: "return probes kill processes under seccomp (6.11 to 6.12.13 and 6.13.2)"
                .to_owned(),
            advice: Some(
                "memtrace refuses such processes; update to 6.12.14, 6.13.3, 6.14 or later",
            ),
        });
    }
    if since(6, 6) && !since(6, 11) {
        checks.push(Check {
            verdict: Verdict::Warn,
            subject,
            finding: "return probes crash processes with shadow stacks (CET), from 6.6 to 6.10"
                .to_owned(),
            advice: Some(
                "do not attach to processes with `shstk` in /proc/PID/status; update to 6.11",
            ),
        });
    }
    if !since(6, 14) {
        checks.push(Check {
            verdict: Verdict::Warn,
            subject,
            finding: "uprobes of many threads wait for one lock, about 3 million hits/s per host"
                .to_owned(),
            advice: Some("expect more slowdown with many threads; 6.14 has mended it"),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::io;

    use memtrace_userspace::live::kernel_types::require_features;
    use memtrace_userspace::live::uprobe_multi::Lacking;

    use super::*;

    fn good() -> Host {
        Host {
            machine: "x86_64",
            release: "6.18.44-amd64".to_owned(),
            version: "#1 SMP PREEMPT_DYNAMIC Debian".to_owned(),
            capabilities: Some(0x1ff_ffff_ffff),
            btf: Ok(()),
            features: Ok(()),
            bpf_jit: Some(true),
            perf_event_paranoid: Some(2),
            lockdown: Some("none".to_owned()),
            locked_memory_bytes: Some(8 << 20),
            uprobe_pmu: Some(9),
            multi_links: Ok(Ok(())),
            watch_functions: Ok(()),
        }
    }

    /// The checks that are not fine: what, how bad.
    fn trouble(facts: &Host) -> Vec<(&'static str, Verdict)> {
        host(facts)
            .iter()
            .filter(|check| check.verdict != Verdict::Ok)
            .map(|check| (check.subject, check.verdict))
            .collect()
    }

    #[test]
    fn recent_kernel_with_root_is_fine() {
        assert_eq!(trouble(&good()), []);
    }

    #[test]
    fn what_is_missing_fails() {
        let no_uprobes =
            Err(KernelTypesError::NoMember { structure: "task_struct", member: "utask" });
        let cases = [
            (Host { machine: "aarch64", ..good() }, "machine"),
            (Host { capabilities: Some(0), ..good() }, "privilege"),
            (Host { capabilities: None, ..good() }, "privilege"),
            (Host { btf: Err(io::ErrorKind::NotFound), ..good() }, "kernel types (BTF)"),
            (Host { features: no_uprobes, ..good() }, "kernel features"),
            (Host { bpf_jit: Some(false), ..good() }, "BPF compiler (JIT)"),
            (Host { uprobe_pmu: None, ..good() }, "uprobes"),
            (Host { perf_event_paranoid: None, ..good() }, "perf_event_paranoid"),
            (Host { lockdown: Some("confidentiality".to_owned()), ..good() }, "lockdown"),
        ];
        for (facts, subject) in cases {
            assert_eq!(trouble(&facts), [(subject, Verdict::Fail)], "{facts:?}");
        }
    }

    #[test]
    fn capabilities_without_admin_are_a_warning() {
        let facts = Host { capabilities: Some(1 << CAP_BPF | 1 << CAP_PERFMON), ..good() };

        assert_eq!(trouble(&facts), [("privilege", Verdict::Warn)]);
    }

    #[test]
    fn kernel_without_multi_links_is_a_warning() {
        for lacking in [Lacking::Links, Lacking::OtherThreads] {
            let facts = Host { multi_links: Ok(Err(lacking)), ..good() };

            assert_eq!(trouble(&facts), [("uprobe_multi links", Verdict::Warn)]);
        }
    }

    #[test]
    fn refusal_is_blamed_on_the_kernel_only_with_privilege() {
        let advice = |capabilities| {
            let refused = Err("Operation not permitted".to_owned());
            let capabilities = Some(capabilities);
            watch_functions(&Host { capabilities, watch_functions: refused, ..good() }).advice
        };

        assert_eq!(advice(0), Some(RUN_WITH_SUDO));
        assert!(advice(1 << CAP_SYS_ADMIN).is_some_and(|advice| advice.contains("kernel with")));
    }

    #[test]
    fn old_kernel_fails_with_what_it_lacks() {
        let release = "5.10.0-35-amd64";
        let facts = Host {
            release: release.to_owned(),
            features: require_features(None, release),
            ..good()
        };

        let failed: Vec<Check> =
            host(&facts).into_iter().filter(|check| check.verdict == Verdict::Fail).collect();

        let expected = Check {
            verdict: Verdict::Fail,
            subject: "kernel features",
            finding:
                "this kernel is too old for memtrace: it has no bpf_get_attach_cookie (new in \
                      5.15), no bpf_loop (new in 5.17)"
                    .to_owned(),
            advice: Some("use Linux 5.17 or later"),
        };
        assert_eq!(failed, [expected]);
    }

    #[test]
    fn hazards_follow_the_version() {
        let warnings = |release: &str| {
            trouble(&Host { release: release.to_owned(), ..good() })
                .iter()
                .filter(|&&(subject, verdict)| (subject, verdict) == ("known bug", Verdict::Warn))
                .count()
        };

        assert_eq!(warnings("6.1.0-18-amd64"), 1);
        assert_eq!(warnings("6.6.0"), 2);
        assert_eq!(warnings("6.12.1"), 2);
        assert_eq!(warnings("6.12.117+deb12-amd64"), 1);
        assert_eq!(warnings("6.14.0"), 0);
    }

    #[test]
    fn whatever_is_wrong_comes_with_advice() {
        let facts = Host {
            machine: "aarch64",
            release: "5.10".to_owned(),
            version: String::new(),
            capabilities: None,
            btf: Err(io::ErrorKind::NotFound),
            features: require_features(None, "5.10"),
            bpf_jit: Some(false),
            perf_event_paranoid: None,
            lockdown: Some("confidentiality".to_owned()),
            locked_memory_bytes: None,
            uprobe_pmu: None,
            multi_links: Err(io::ErrorKind::PermissionDenied),
            watch_functions: Err("Operation not permitted".to_owned()),
        };

        for check in host(&facts) {
            assert_eq!(check.advice.is_some(), check.verdict != Verdict::Ok, "{check:?}");
        }
    }
}
