//! redis-server under redis-benchmark: a server that was started before memtrace came.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    background::{self, Background, PATIENCE},
    peers::Peer,
    programs::Usage,
    stage::Stage,
};
use crate::{privilege::Privilege, shell};

/// What tables call it.
pub(super) const NAME: &str = "redis-server";

/// What memtrace may cost, in bare runs.
pub(super) const TARGET: f64 = 12.0;

const SERVER: &str = "/usr/bin/redis-server";

/// A server on a socket of its own, killed when dropped.
pub(super) struct Redis {
    session: Background,
    pid: u32,
    socket: PathBuf,
}

impl Redis {
    pub(super) fn start(stage: &Stage) -> Result<Self> {
        Self::from_command(stage, Command::new(SERVER))
    }

    pub(super) fn start_under(stage: &Stage, tool: &Peer) -> Result<Self> {
        Self::from_command(stage, tool.launch(stage, SERVER.as_ref())?)
    }

    fn from_command(stage: &Stage, mut command: Command) -> Result<Self> {
        let socket = stage.scratch().join("redis.sock");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        command.arg(&socket).current_dir(&stage.dir);
        let mut session = Background::start(NAME, &Privilege::Root, command)?;
        session.wait_for("accept connections at", PATIENCE)?;
        let pid = background::find_named(session.pid(), NAME).context("redis-server has ended")?;
        Ok(Self { session, pid, socket })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends requests and returns what they cost the server.
    pub(super) fn benchmark(&self, requests: u32, patience: Duration) -> Result<Usage> {
        let mut command = Command::new("timeout");
        command.arg(patience.as_secs().to_string()).arg("redis-benchmark").arg("-s");
        command.arg(&self.socket).args(["-P", "16", "-q", "-t", "set,get,lpush,hset"]);
        command.args(["-n", &requests.to_string(), "-r", "10000"]);
        let before_ns = background::cpu_ns(self.pid)?;
        let start = Instant::now();
        shell::ask(&mut command)?;
        let wall_s = start.elapsed().as_secs_f64();
        Ok(Usage { cpu_s: (background::cpu_ns(self.pid)? - before_ns) as f64 / 1e9, wall_s })
    }

    /// Ends the server in order and returns all that it, or the tool around it, said.
    pub(super) fn shut_down(self) -> Result<Vec<String>> {
        let mut command = Command::new("redis-cli");
        shell::ask(command.arg("-s").arg(&self.socket).args(["shutdown", "nosave"]))?;
        self.session.finish(PATIENCE)
    }
}
