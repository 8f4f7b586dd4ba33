//! A container, made with `unshare` as a runtime would make it, without one; and one of podman.
//!
//! A process in mount, PID and user namespaces of its own, in a root directory that holds busybox,
//! musl and one program. The host does not have the program at its path, so nothing but a look
//! into the container finds it:
//!
//! ```text
//!   host         unshare ── pid 4711 (sh) ── pid 4713 (/bin/leak_musl)
//!   container                  1                2
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::recording::{DEADLINE, Running};

/// A static shell with its tools.
const BUSYBOX: &str = "/bin/busybox";

/// musl's loader and library, which are one file.
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// A program that runs in a container and has said `ready`.
#[derive(Debug)]
pub struct Container {
    /// What holds the container: its stdin and stdout are those of the program.
    pub running: Running,
    /// The root directory, as the host sees it.
    pub root: PathBuf,
    /// The program's id on the host.
    pub pid: u32,
    /// Its ids in the namespaces inside, from the outer to its own.
    pub inner_pids: Vec<u32>,
}

/// How many containers are around a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// One.
    Single,
    /// One in another.
    Nested,
}

impl Container {
    /// Starts `program`, which needs no library but musl, with `--wait` in a new container.
    pub fn start(test: &str, program: &Path, depth: Depth) -> Result<Container> {
        let (root, name) = make_root(test, program)?;
        // The last command is no longer the shell's own process, so its id inside is not 1.
        let inside = match depth {
            Depth::Single => format!("/bin/{name} --wait; exit $?"),
            Depth::Nested => format!(
                "/bin/busybox unshare -m -p -f -U -r /bin/sh -c '/bin/{name} --wait; exit $?'; \
                 exit $?"
            ),
        };
        let enter = "mount --bind \"$1\" \"$1\" && cd \"$1\" && pivot_root . old && \
            exec /bin/busybox sh -c \"/bin/busybox mount -t proc proc /proc && \
            /bin/busybox umount -l /old && $2\"";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--user", "--map-root-user", "--fork", "--kill-child"]);
        unshare.args(["sh", "-c", enter, "sh"]).arg(&root).arg(inside).stdin(Stdio::piped());
        let mut running = Running::start(&mut unshare)?;
        running.wait_for_stdout("ready")?;
        let pid = find_descendant(running.pid(), name)?;
        let inner_pids = inner_pids(pid)?;
        Ok(Container { running, root, pid, inner_pids })
    }
}

/// Fills a new root directory; returns it and the program's name in its `bin`.
fn make_root<'a>(test: &str, program: &'a Path) -> Result<(PathBuf, &'a str)> {
    let root = crate::scratch_directory(&format!("{test}-root"))?;
    for directory in ["bin", "lib", "proc", "old"] {
        fs::create_dir(root.join(directory)).context("make the container's directories")?;
    }
    let name = program.file_name().and_then(|name| name.to_str()).context("a file name")?;
    for (from, to) in [
        (Path::new(BUSYBOX), "bin/busybox".to_owned()),
        (Path::new(MUSL), "lib/ld-musl-x86_64.so.1".to_owned()),
        (program, format!("bin/{name}")),
    ] {
        fs::copy(from, root.join(to)).with_context(|| format!("copy {}", from.display()))?;
    }
    symlink("busybox", root.join("bin/sh")).context("link the container's shell")?;
    Ok((root, name))
}

/// A program that runs in a container of podman and has said `ready`.
#[derive(Debug)]
pub struct PodmanContainer {
    /// `podman run`, which passes on the program's stdin and stdout.
    pub running: Running,
    /// The container's id.
    pub id: String,
    _state: PodmanState,
}

/// Where podman keeps what it knows, until this is dropped; it refuses paths of more than 50 bytes.
#[derive(Debug)]
struct PodmanState(PathBuf);

impl PodmanState {
    fn create() -> Result<PodmanState> {
        let path = std::env::temp_dir().join(format!("mtpod{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(PodmanState(path))
    }
}

impl Drop for PodmanState {
    fn drop(&mut self) {
        // What podman has left mounted there cannot be removed, and harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl PodmanContainer {
    /// Starts `program`, which needs no library but musl, with `--wait`; why that does not work here
    /// is the inner error.
    ///
    /// It needs no image, network or overlay, and no limit that only a privileged user could raise.
    pub fn start(test: &str, program: &Path) -> Result<Result<PodmanContainer, String>> {
        let (root, name) = make_root(test, program)?;
        let state = PodmanState::create()?;
        let id_file = state.0.join("id");
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(state.0.join("root")).arg("--runroot").arg(state.0.join("run"));
        podman.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=runc"]);
        podman.args(["run", "--rm", "--interactive", "--network=none"]);
        podman.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        podman.arg("--cidfile").arg(&id_file).arg("--rootfs").arg(&root);
        podman.arg(format!("/bin/{name}")).arg("--wait").stdin(Stdio::piped());
        let mut running = match Running::start(&mut podman) {
            Ok(running) => running,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        if let Err(error) = running.wait_for_stdout("ready") {
            return Ok(Err(format!("{error:#}")));
        }
        let id = fs::read_to_string(&id_file).context("read the container's id")?;
        Ok(Ok(PodmanContainer { running, id: id.trim().to_owned(), _state: state }))
    }
}

/// The process below `ancestor` that runs the program of this name.
fn find_descendant(ancestor: u32, program: &str) -> Result<u32> {
    let started = Instant::now();
    loop {
        let mut waiting = vec![ancestor];
        while let Some(pid) = waiting.pop() {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if exe.file_name().is_some_and(|name| name == program) {
                return Ok(pid);
            }
            let children = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            waiting.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        if started.elapsed() > DEADLINE {
            bail!("no process below {ancestor} runs {program}");
        }
    }
}

/// The ids behind the first in the line `NSpid`.
fn inner_pids(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("no NSpid")?;
    line.split_whitespace().skip(1).map(|pid| pid.parse().context("an id")).collect()
}
