//! Which running processes are meant by a name, a cgroup or a container.
//!
//! In: a [`Selection`], as the user wrote it, and what `/proc` says of every process. Out: the
//! [`Candidate`]s that match, or the ones that nearly do. Values of one kind are alternatives, the
//! kinds together narrow down:
//!
//! ```text
//!   --comm nginx --comm php-fpm --container 3f2a      (nginx or php-fpm), and in that container
//! ```
//!
//! Matching is pure; [`candidates`] is the shell that reads `/proc`. Kernel threads, zombies and
//! memtrace itself are no candidates.

use std::fs;

use thiserror::Error;

use super::process::cgroup::{CONTAINER_ID_DIGITS, Cgroup};
use super::process::{self, ProcessError};
use crate::record::Pid;

/// The fewest digits of a container's id that are taken for one.
const MIN_CONTAINER_DIGITS: usize = 4;

/// Where cgroup file systems are mounted.
const CGROUP_MOUNT: &[u8] = b"/sys/fs/cgroup";

/// How similar names must be to be suggested, of 1.
const NEAR: f64 = 0.82;

/// Why a selection cannot be meant.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SelectionError {
    /// A name that no process can have.
    #[error("expected the name of a program, such as nginx or 'python*', and not a path")]
    NotAName,
    /// Everything is in the root cgroup.
    #[error("every process is below the root cgroup; name one below it, such as /system.slice")]
    RootCgroup,
    /// Names of containers are known to their runtime alone.
    #[error(
        "expected the id of a container or its first {MIN_CONTAINER_DIGITS} digits or more, as \
         `docker ps` shows it; for a name use `docker inspect -f '{{{{.Id}}}}' NAME`"
    )]
    NotAContainerId,
}

/// A name of processes; `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Vec<u8>);

impl NamePattern {
    /// Reads what the user wrote.
    pub fn parse(text: &str) -> Result<NamePattern, SelectionError> {
        match text {
            "" => Err(SelectionError::NotAName),
            text if text.contains('/') => Err(SelectionError::NotAName),
            text => Ok(NamePattern(text.as_bytes().to_vec())),
        }
    }

    /// The text as it was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether `name` is meant.
    fn matches(&self, name: &[u8]) -> bool {
        let mut parts = self.0.split(|&byte| byte == b'*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts.filter(|part| !part.is_empty()) {
            let Some(at) = rest.windows(part.len()).position(|window| window == part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// A cgroup and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPattern(Vec<u8>);

impl CgroupPattern {
    /// Reads a path, with the place of its mount or without; a name alone is one anywhere.
    pub fn parse(text: &str) -> Result<CgroupPattern, SelectionError> {
        let path = text.as_bytes();
        let path = match path.strip_prefix(CGROUP_MOUNT) {
            Some(below) if below.is_empty() || below.starts_with(b"/") => below,
            Some(_) | None => path,
        };
        let path = path.strip_suffix(b"/").unwrap_or(path);
        match path {
            b"" => Err(SelectionError::RootCgroup),
            path if path.contains(&b'/') && !path.starts_with(b"/") => {
                Ok(CgroupPattern([b"/", path].concat()))
            }
            path => Ok(CgroupPattern(path.to_vec())),
        }
    }

    /// Whether the cgroup is this one or below it.
    fn matches(&self, cgroup: &Cgroup) -> bool {
        let Cgroup { mounted_as, path } = cgroup;
        if !self.0.starts_with(b"/") {
            return path.split(|&byte| byte == b'/').any(|part| part == self.0);
        }
        let is_below = |path: &[u8]| {
            path.strip_prefix(self.0.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        is_below(path)
            || mounted_as.iter().any(|mount| is_below(&[b"/", mount.as_slice(), path].concat()))
    }

    fn last_part(&self) -> &[u8] {
        self.0.rsplit(|&byte| byte == b'/').next().unwrap_or(&self.0)
    }
}

/// The first digits of a container's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPattern(Vec<u8>);

impl ContainerPattern {
    /// Reads an id or its first digits.
    pub fn parse(text: &str) -> Result<ContainerPattern, SelectionError> {
        let id = text.as_bytes();
        let is_length = (MIN_CONTAINER_DIGITS..=CONTAINER_ID_DIGITS).contains(&id.len());
        if is_length && id.iter().all(u8::is_ascii_hexdigit) {
            Ok(ContainerPattern(id.to_ascii_lowercase()))
        } else {
            Err(SelectionError::NotAContainerId)
        }
    }
}

/// Which processes are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Names; none for any.
    pub names: Vec<NamePattern>,
    /// Cgroups; none for any.
    pub cgroups: Vec<CgroupPattern>,
    /// Containers; none for any, and for none.
    pub containers: Vec<ContainerPattern>,
}

impl Selection {
    /// Whether nothing is meant.
    pub fn is_empty(&self) -> bool {
        let Selection { names, cgroups, containers } = self;
        names.is_empty() && cgroups.is_empty() && containers.is_empty()
    }

    /// Whether the process is meant.
    pub fn matches(&self, candidate: &Candidate) -> bool {
        let Selection { names, cgroups, containers } = self;
        let has_name = |pattern: &NamePattern| candidate.names().any(|name| pattern.matches(name));
        let is_in = |pattern: &CgroupPattern| candidate.cgroups.iter().any(|c| pattern.matches(c));
        let is_inside = |pattern: &ContainerPattern| {
            candidate.containers.iter().any(|id| id.starts_with(&pattern.0))
        };
        !self.is_empty()
            && (names.is_empty() || names.iter().any(has_name))
            && (cgroups.is_empty() || cgroups.iter().any(is_in))
            && (containers.is_empty() || containers.iter().any(is_inside))
    }

    /// Whether the process is nearly meant: what to suggest when nothing matches.
    pub fn nearly_matches(&self, candidate: &Candidate) -> bool {
        let Selection { names, cgroups, containers } = self;
        let similar = |wanted: &[u8], name: &[u8]| {
            let (wanted, name) = (lower(wanted).replace('*', ""), lower(name));
            !wanted.is_empty()
                && (name.contains(&wanted) || strsim::jaro_winkler(&wanted, &name) >= NEAR)
        };
        let by_name =
            |pattern: &NamePattern| candidate.names().any(|name| similar(&pattern.0, name));
        let by_cgroup = |pattern: &CgroupPattern| {
            let mut parts =
                candidate.cgroups.iter().flat_map(|c| c.path.split(|&byte| byte == b'/'));
            parts.any(|part| !part.is_empty() && similar(pattern.last_part(), part))
        };
        names.iter().any(by_name)
            || cgroups.iter().any(by_cgroup)
            || (!containers.is_empty() && !candidate.containers.is_empty())
    }
}

fn lower(text: &[u8]) -> String {
    String::from_utf8_lossy(text).to_lowercase()
}

/// A running process that may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub pid: Pid,
    /// Its name, at most 15 bytes.
    pub comm: Vec<u8>,
    /// File name of its executable; empty if that cannot be seen.
    pub exe_name: Vec<u8>,
    /// Its cgroup in each hierarchy.
    pub cgroups: Vec<Cgroup>,
    /// The containers that it is in, the innermost last.
    pub containers: Vec<Vec<u8>>,
}

impl Candidate {
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        [self.comm.as_slice(), self.exe_name.as_slice()].into_iter().filter(|name| !name.is_empty())
    }
}

/// Every process of which memtrace could be asked, by id.
///
/// Processes that end meanwhile are left out.
pub fn candidates() -> Result<Vec<Candidate>, ProcessError> {
    let path = std::path::Path::new("/proc");
    let entries = fs::read_dir(path)
        .map_err(|source| ProcessError::Unreadable { path: path.to_owned(), source })?;
    let own = std::process::id();
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = pids.filter(|pid| *pid != own).collect();
    pids.sort_unstable();
    Ok(pids.into_iter().filter_map(|pid| process::candidate(Pid(pid))).collect())
}

/// The processes that are meant now.
pub fn find(selection: &Selection) -> Result<Vec<Candidate>, ProcessError> {
    Ok(candidates()?.into_iter().filter(|candidate| selection.matches(candidate)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::process::cgroup;

    const ID: &[u8] = b"3f2a9c1d5b7e4f60813fa2b4c6d8e0f13f2a9c1d5b7e4f60813fa2b4c6d8e09a";

    fn candidate(comm: &str, exe_name: &str, cgroups: &str) -> Candidate {
        let cgroups = cgroup::parse_cgroups(cgroups.as_bytes());
        Candidate {
            pid: Pid(7),
            comm: comm.into(),
            exe_name: exe_name.into(),
            containers: cgroup::containers(&cgroups),
            cgroups,
        }
    }

    fn named(name: &str) -> Selection {
        Selection { names: vec![NamePattern::parse(name).expect("a name")], ..Selection::default() }
    }

    fn in_cgroup(path: &str) -> Selection {
        let pattern = CgroupPattern::parse(path).expect("a cgroup");
        Selection { cgroups: vec![pattern], ..Selection::default() }
    }

    fn in_container(id: &str) -> Selection {
        let pattern = ContainerPattern::parse(id).expect("an id");
        Selection { containers: vec![pattern], ..Selection::default() }
    }

    #[test]
    fn name_is_that_of_the_process_or_of_its_executable() {
        let worker = candidate("worker-1", "nginx", "0::/\n");

        assert!(named("nginx").matches(&worker));
        assert!(named("worker-1").matches(&worker));
        assert!(!named("worker").matches(&worker));
        assert!(!named("ngin").matches(&worker));
    }

    #[test]
    fn star_stands_for_any_text() {
        let matches = |pattern, name: &str| {
            NamePattern::parse(pattern).expect("a name").matches(name.as_bytes())
        };

        assert!(matches("python*", "python3.11"));
        assert!(matches("*3*1*", "python3.11"));
        assert!(matches("*", "x"));
        assert!(matches("a*a", "aa"));
        assert!(!matches("a*a", "a"));
        assert!(!matches("*b*b", "xb"));
        assert!(!matches("p*x", "python"));
        assert!(matches("a**b", "ab"));
    }

    #[test]
    fn cgroup_is_meant_with_all_below_it() {
        let nginx = candidate("nginx", "nginx", "0::/system.slice/nginx.service/worker\n");

        for path in [
            "/system.slice",
            "/system.slice/nginx.service/",
            "system.slice/nginx.service",
            "/sys/fs/cgroup/system.slice/nginx.service/worker",
            "/sys/fs/cgroup/unified/system.slice",
            "nginx.service",
        ] {
            assert!(in_cgroup(path).matches(&nginx), "{path}");
        }
        for path in ["/system.slice/nginx", "/nginx.service", "/system.slice/nginx.service/w"] {
            assert!(!in_cgroup(path).matches(&nginx), "{path}");
        }
    }

    #[test]
    fn cgroup_of_version_1_is_known_by_its_mount() {
        let job = candidate("job", "job", "4:cpu,cpuacct:/\n3:memory:/batch/job\n0::/\n");

        assert!(in_cgroup("/batch").matches(&job));
        assert!(in_cgroup("/sys/fs/cgroup/memory/batch/job").matches(&job));
        assert!(!in_cgroup("/sys/fs/cgroup/cpu,cpuacct/batch").matches(&job));
    }

    #[test]
    fn container_is_meant_by_the_first_digits_of_its_id() {
        let text = format!("0::/docker/{}\n", String::from_utf8_lossy(ID));
        let inside = candidate("app", "app", &text);

        assert!(in_container("3f2a9c1d5b7e").matches(&inside));
        assert!(in_container("3F2A").matches(&inside));
        assert!(!in_container("9c1d").matches(&inside));
        assert!(!in_container("3f2a").matches(&candidate("app", "app", "0::/\n")));
    }

    #[test]
    fn kinds_narrow_down_and_values_widen() {
        let app = candidate("app", "app", "0::/a\n");
        let mut selection = named("app");
        selection.names.push(NamePattern::parse("other").expect("a name"));
        assert!(selection.matches(&app));

        selection.cgroups = in_cgroup("/b").cgroups;
        assert!(!selection.matches(&app));

        selection.cgroups.extend(in_cgroup("/a").cgroups);
        assert!(selection.matches(&app));
        assert!(!Selection::default().matches(&app));
    }

    #[test]
    fn misspelt_name_is_nearly_one() {
        let nginx = candidate("nginx", "nginx", "0::/system.slice/nginx.service\n");

        assert!(named("ngnix").nearly_matches(&nginx));
        assert!(named("Nginx").nearly_matches(&nginx));
        assert!(!named("postgres").nearly_matches(&nginx));
        assert!(in_cgroup("/system/nginx").nearly_matches(&nginx));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert_eq!(NamePattern::parse("/usr/bin/x"), Err(SelectionError::NotAName));
        assert_eq!(NamePattern::parse(""), Err(SelectionError::NotAName));
        for root in ["/", "", "/sys/fs/cgroup", "/sys/fs/cgroup/"] {
            assert_eq!(CgroupPattern::parse(root), Err(SelectionError::RootCgroup), "{root}");
        }
        for id in ["web", "3f2", "my-container", &"a".repeat(65)] {
            let error = ContainerPattern::parse(id);
            assert_eq!(error, Err(SelectionError::NotAContainerId), "{id}");
        }
    }

    #[test]
    fn own_process_is_no_candidate() {
        let all = candidates().expect("/proc is mounted");

        assert!(!all.iter().any(|candidate| candidate.pid.0 == std::process::id()));
    }
}
