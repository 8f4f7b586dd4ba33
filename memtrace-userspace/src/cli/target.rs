//! Which running processes to trace: the arguments that `record`, `top` and `check` share.

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use memtrace_userspace::live::privilege;
use memtrace_userspace::live::selection::{
    self, Candidate, CgroupPattern, ContainerPattern, NamePattern, Selection,
};
use memtrace_userspace::record::Pid;
use memtrace_userspace::views::printable::printable;

/// How many processes or containers an error suggests.
const SUGGESTIONS: usize = 5;

/// Digits of a container's id that tell it from the others on a host.
const SHORT_ID_DIGITS: usize = 12;

/// Running processes: by id, or by what they are called and where they live.
#[derive(Clone, Debug, Args)]
#[group(id = "processes", multiple = true)]
pub(crate) struct TargetArguments {
    /// The process to attach to; may be given again
    #[arg(short, long = "pid", value_name = "PID", value_parser = pid, value_delimiter = ',')]
    pids: Vec<Pid>,
    /// Every process of this name, or whose executable has it; `*` stands for any text
    #[arg(long = "comm", value_name = "NAME", value_parser = NamePattern::parse)]
    names: Vec<NamePattern>,
    /// Every process in this cgroup or below it, such as /system.slice/nginx.service
    #[arg(long = "cgroup", value_name = "PATH", value_parser = CgroupPattern::parse)]
    cgroups: Vec<CgroupPattern>,
    /// Every process in this container: an id, or its first digits
    #[arg(long = "container", value_name = "ID", value_parser = ContainerPattern::parse)]
    containers: Vec<ContainerPattern>,
    /// Attach to what matches later, too; looks once a second, and waits if nothing matches yet
    #[arg(long)]
    follow: bool,
}

/// The group of whatever says what to look at, of which something must be given.
///
/// What a command takes instead of processes is added to it, and conflicts with `processes`.
pub(crate) fn one_target() -> ArgGroup {
    let group = ArgGroup::new("target").required(true).multiple(true);
    group.args(["pids", "names", "cgroups", "containers"])
}

/// What the arguments mean at this moment.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The processes, each once.
    pub(crate) pids: Vec<Pid>,
    /// How they were found, if not by id alone.
    pub(crate) selection: Option<Selection>,
    /// Whether those that match later are meant, too.
    pub(crate) follow: bool,
}

impl TargetArguments {
    /// Whether anything was given.
    pub(crate) fn is_given(&self) -> bool {
        let TargetArguments { pids, names, cgroups, containers, follow } = self;
        let by_name = !names.is_empty() || !cgroups.is_empty() || !containers.is_empty();
        !pids.is_empty() || by_name || *follow
    }

    /// Finds the processes. That none matches is an error, which names those that nearly do.
    pub(crate) fn resolve(self) -> Result<Resolved> {
        let TargetArguments { mut pids, names, cgroups, containers, follow } = self;
        let selection = Selection { names, cgroups, containers };
        if selection.is_empty() {
            if follow {
                bail!("--follow needs --comm, --cgroup or --container: an id means one process");
            }
            return Ok(Resolved { pids, selection: None, follow });
        }
        privilege::check()?;
        let candidates = selection::candidates().context("cannot look for processes")?;
        let matching = candidates.iter().filter(|candidate| selection.matches(candidate));
        let found: Vec<Pid> =
            matching.map(|candidate| candidate.pid).filter(|pid| !pids.contains(pid)).collect();
        if found.is_empty() && pids.is_empty() && !follow {
            bail!("{}", no_match(&selection, &candidates));
        }
        pids.extend(found);
        Ok(Resolved { pids, selection: Some(selection), follow })
    }
}

/// `no running process is called ngnix; nearly: nginx (812), nginx (813)`.
fn no_match(selection: &Selection, candidates: &[Candidate]) -> String {
    let near: Vec<&Candidate> =
        candidates.iter().filter(|candidate| selection.nearly_matches(candidate)).collect();
    let Selection { names, cgroups, containers } = selection;
    let what = match (names.is_empty(), cgroups.is_empty(), containers.is_empty()) {
        (false, true, true) => "no running process has such a name",
        (true, false, true) => "no process runs in such a cgroup",
        (true, true, false) => "no process runs in such a container",
        _ => "no running process matches all that was given",
    };
    let mut suggestions: Vec<String> = Vec::new();
    for candidate in &near {
        let suggestion = suggestion(candidate, selection);
        if !suggestions.contains(&suggestion) {
            suggestions.push(suggestion);
        }
    }
    let more = suggestions.len().saturating_sub(SUGGESTIONS);
    suggestions.truncate(SUGGESTIONS);
    if suggestions.is_empty() {
        let how = match containers.is_empty() {
            true => "see `ps -eo pid,comm,cgroup` for those that run",
            false => "`docker ps`, `podman ps` or `crictl ps` shows the ids of those that run",
        };
        return format!("{what}; {how}");
    }
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{what}; there is {}{more}", suggestions.join(", "))
}

/// What would have to be written for this process.
fn suggestion(candidate: &Candidate, selection: &Selection) -> String {
    let Candidate { pid, comm, exe_name, cgroups, containers } = candidate;
    let name = if exe_name.is_empty() { comm } else { exe_name };
    if !selection.containers.is_empty()
        && let Some(id) = containers.last()
    {
        let short = id.get(..SHORT_ID_DIGITS).unwrap_or(id);
        return format!("{} ({})", printable(short), printable(name));
    }
    if !selection.cgroups.is_empty() && selection.names.is_empty() {
        let longest = cgroups.iter().map(|cgroup| &cgroup.path).max_by_key(|path| path.len());
        if let Some(path) = longest {
            return printable(path).into_owned();
        }
    }
    format!("{} ({})", printable(name), pid.0)
}

/// A process id, as `-p` takes it.
pub(super) fn pid(text: &str) -> Result<Pid, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a process id, such as 4711".to_owned()),
        Ok(pid) => Ok(Pid(pid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(pid: u32, name: &str) -> Candidate {
        Candidate {
            pid: Pid(pid),
            comm: name.into(),
            exe_name: name.into(),
            cgroups: Vec::new(),
            containers: Vec::new(),
        }
    }

    fn named(name: &str) -> Selection {
        Selection { names: vec![NamePattern::parse(name).expect("a name")], ..Selection::default() }
    }

    #[test]
    fn misspelt_name_gets_a_suggestion() {
        let running = [candidate(812, "nginx"), candidate(813, "nginx"), candidate(9, "sshd")];

        assert_eq!(
            no_match(&named("ngnix"), &running),
            "no running process has such a name; there is nginx (812), nginx (813)"
        );
    }

    #[test]
    fn suggestions_are_few() {
        let running: Vec<_> = (1..=8).map(|pid| candidate(pid, "worker\x1b")).collect();

        let message = no_match(&named("work"), &running);

        assert!(message.ends_with("worker\\x1b (5) and 3 more"), "{message}");
    }

    #[test]
    fn name_that_is_like_none_gets_a_way_to_look() {
        let message = no_match(&named("zzz"), &[candidate(9, "sshd")]);

        assert!(message.ends_with("see `ps -eo pid,comm,cgroup` for those that run"), "{message}");
    }

    #[test]
    fn unknown_container_gets_those_that_run() {
        let inside = |pid, id: &str| Candidate {
            containers: vec![id.repeat(16).into_bytes()],
            ..candidate(pid, "app")
        };
        let containers = vec![ContainerPattern::parse("ffff").expect("an id")];
        let selection = Selection { containers, ..Selection::default() };
        let running = [inside(1, "3f2a"), inside(2, "3f2a"), candidate(3, "sshd")];

        assert_eq!(
            no_match(&selection, &running),
            "no process runs in such a container; there is 3f2a3f2a3f2a (app)"
        );
        assert!(no_match(&selection, &running[2..]).contains("docker ps"));
    }
}
