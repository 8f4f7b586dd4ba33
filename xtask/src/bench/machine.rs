//! Where and when something was measured, and what was measured with what.

use std::{fs, process::Command};

use anyhow::Result;
use serde_json::{Value, json};

use crate::shell;

/// Tracers that slow every program down, or the probes of other tracers, while they are attached.
const TRACERS: [&str; 5] = ["memtrace", "bpftrace", "memleak", "perf", "strace"];

pub(super) struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    virtualized: bool,
    memory_mib: u64,
    system: String,
    kernel: String,
    libc: String,
    compiler: String,
    commit: String,
    /// Processes that wanted a CPU when the bench began, as `/proc/loadavg` has it for a minute.
    load: String,
    /// Other tracers that ran when the bench began.
    tracers: Vec<String>,
}

impl Machine {
    pub(super) fn look() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let loadavg = fs::read_to_string("/proc/loadavg")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let memory_kib =
            after(&meminfo, "MemTotal:").split(' ').next().and_then(|n| n.parse::<u64>().ok());
        let git = |arguments: &[&str]| {
            shell::ask(Command::new("git").arg("-C").arg(shell::root()).args(arguments))
        };
        let dirty = git(&["status", "--porcelain", "--untracked-files=no"])
            .is_ok_and(|text| !text.is_empty());
        Ok(Self {
            date: shell::ask(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
            cpu: after(&cpuinfo, "model name").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            virtualized: after(&cpuinfo, "flags").split(' ').any(|flag| flag == "hypervisor"),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
            system: after(&release, "PRETTY_NAME=").trim_matches('"').to_owned(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim_end().to_owned(),
            libc: shell::ask(Command::new("getconf").arg("GNU_LIBC_VERSION")).unwrap_or_default(),
            compiler: shell::ask(Command::new("c++").arg("--version"))
                .map(|text| text.lines().next().unwrap_or_default().to_owned())?,
            commit: git(&["rev-parse", "--short", "HEAD"])
                .map(|commit| if dirty { format!("{commit}, changed") } else { commit })
                .unwrap_or_else(|_| "unknown".to_owned()),
            load: loadavg.split(' ').next().unwrap_or_default().to_owned(),
            tracers: running(&TRACERS),
        })
    }

    /// One line.
    pub(super) fn summary(&self) -> String {
        let Self { date, cores, virtualized, kernel, libc, commit, .. } = self;
        let guest = if *virtualized { " virtual machine" } else { " machine" };
        format!("On a {cores}-core{guest} with kernel {kernel} and {libc}, {date}, commit {commit}")
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let Self {
            date,
            cpu,
            cores,
            virtualized,
            memory_mib,
            system,
            kernel,
            libc,
            compiler,
            commit,
            load,
            tracers,
        } = self;
        let guest = if *virtualized { ", a virtual machine" } else { "" };
        let mut lines = vec![
            format!("date: {date}, memtrace at commit {commit}"),
            format!("machine: {cores} × {cpu}{guest}, {memory_mib} MiB of memory"),
            format!("kernel {kernel}, {system}, {libc}, {compiler}"),
            format!("load when the bench began: {load}"),
        ];
        if !tracers.is_empty() {
            lines.push(format!(
                "**not alone**: {} ran beside the bench, so its figures are noisier and greater \
                 than they should be",
                tracers.join(", ")
            ));
        }
        lines
    }

    pub(super) fn json(&self) -> Value {
        let Self {
            date,
            cpu,
            cores,
            virtualized,
            memory_mib,
            system,
            kernel,
            libc,
            compiler,
            commit,
            load,
            tracers,
        } = self;
        json!({
            "date": date, "cpu": cpu, "cores": cores, "virtualized": virtualized,
            "memory_mib": memory_mib, "system": system, "kernel": kernel, "libc": libc,
            "compiler": compiler, "commit": commit, "load": load, "other_tracers": tracers,
        })
    }
}

/// What follows a key and perhaps a colon, in the first line that begins with the key.
fn after<'text>(text: &'text str, key: &str) -> &'text str {
    let rest = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    rest.trim_start_matches([' ', '\t', ':']).trim_end()
}

/// The processes of those names, as `name (pid N)`.
fn running(names: &[&str]) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let named = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse::<u32>().ok()?;
        let comm = fs::read_to_string(process.path().join("comm")).ok()?;
        names.contains(&comm.trim_end()).then(|| format!("{} (pid {pid})", comm.trim_end()))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_follows_its_key_with_or_without_a_colon() {
        assert_eq!(
            after("vendor_id\t: X\nmodel name\t: A CPU\nmodel name\t: B\n", "model name"),
            "A CPU"
        );
        assert_eq!(after("PRETTY_NAME=\"Debian\"\n", "PRETTY_NAME="), "\"Debian\"");
        assert_eq!(after("", "flags"), "");
    }
}
