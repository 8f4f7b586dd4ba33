//! The recorder's end of the control socket.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{DIRECTORY, MAX_LINE_BYTES, MAX_MARK_BYTES, socket_of};
use crate::record::{Pid, Time};

/// How long a client may take for its line, and for taking the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a request may take. A large heap takes a moment.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// Clients that are served at a time. Beyond: they wait.
const CLIENTS: usize = 8;

/// What a client has asked for.
#[derive(Debug)]
pub(crate) enum Request {
    /// A mark with this text: the tracer's business. The answer is its time.
    Mark(String, oneshot::Sender<Time>),
    /// A heap snapshot: the pipeline's. The answer is a trace, or why there is none.
    Snapshot(oneshot::Sender<Result<Vec<u8>, String>>),
}

/// Where the requests come out, apart for those who answer them.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) marks: Receiver<Request>,
    pub(crate) snapshots: Receiver<Request>,
}

#[derive(Clone, Debug)]
struct Answerers {
    marks: Sender<Request>,
    snapshots: Sender<Request>,
}

/// The sockets of a session. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct Control {
    sockets: Vec<Socket>,
    answerers: Answerers,
}

#[derive(Debug)]
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Control {
    /// Listens for requests about these processes. Needs the context of a runtime.
    ///
    /// Where it cannot listen it says so in the log: a session goes on without.
    pub(crate) fn listen(pids: impl IntoIterator<Item = Pid>) -> (Control, Requests) {
        let ((marks, mark_requests), (snapshots, snapshot_requests)) = (channel(), channel());
        let mut sockets = Vec::new();
        for pid in pids {
            match bind(Path::new(DIRECTORY), &socket_of(pid)) {
                Ok(socket) => sockets.push(socket),
                Err(error) => tracing::info!(
                    "no marks and snapshots of process {} on request: {}: {error}",
                    pid.0,
                    socket_of(pid).display()
                ),
            }
        }
        let control = Control { sockets, answerers: Answerers { marks, snapshots } };
        (control, Requests { marks: mark_requests, snapshots: snapshot_requests })
    }

    /// Serves clients for ever; not at all if there is no socket.
    pub(crate) async fn serve(&self) {
        let mut clients = JoinSet::new();
        loop {
            while clients.len() >= CLIENTS {
                clients.join_next().await;
            }
            while clients.try_join_next().is_some() {}
            let Some(stream) = self.accept().await else {
                return std::future::pending().await;
            };
            clients.spawn(serve_client(stream, self.answerers.clone()));
        }
    }

    /// The next client of any socket; `None` if there is no socket.
    async fn accept(&self) -> Option<UnixStream> {
        if self.sockets.is_empty() {
            return None;
        }
        std::future::poll_fn(|context| {
            for Socket { listener, path } in &self.sockets {
                match listener.poll_accept(context) {
                    std::task::Poll::Ready(Ok((stream, _))) => {
                        return std::task::Poll::Ready(Some(stream));
                    }
                    std::task::Poll::Ready(Err(error)) => {
                        tracing::info!("{}: {error}", path.display());
                        return std::task::Poll::Ready(None);
                    }
                    std::task::Poll::Pending => {}
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for Socket { path, .. } in &self.sockets {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!("{} is left: {error}", path.display());
            }
        }
    }
}

/// Makes a socket in `directory`; one that nobody listens on is replaced.
fn bind(directory: &Path, path: &Path) -> io::Result<Socket> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if path.exists() {
        match BlockingStream::connect(path) {
            Ok(_) => {
                let text = "another memtrace records this process";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(Socket { path: path.to_owned(), listener })
}

async fn serve_client(mut stream: UnixStream, answerers: Answerers) {
    let answer = match tokio::time::timeout(CLIENT_PATIENCE, read_line(&mut stream)).await {
        Ok(Ok(line)) => {
            match tokio::time::timeout(ANSWER_PATIENCE, answer(&line, &answerers)).await {
                Ok(answer) => answer,
                Err(_) => error("memtrace is too busy; try again"),
            }
        }
        Ok(Err(_)) | Err(_) => error("a request is one line; use `memtrace mark` or `snapshot`"),
    };
    // A client that is gone needs no answer.
    let _ = tokio::time::timeout(ANSWER_PATIENCE, stream.write_all(&answer)).await;
}

/// The line without its end.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_LINE_BYTES {
        stream.read_exact(&mut byte).await?;
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.extend(byte);
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn answer(line: &str, answerers: &Answerers) -> Vec<u8> {
    const ENDING: &str = "the recording is ending";
    if let Some(text) = line.strip_prefix("mark ") {
        if text.is_empty() || text.len() > MAX_MARK_BYTES {
            return error(&format!("a mark has 1 to {MAX_MARK_BYTES} bytes"));
        }
        let (sender, time) = oneshot::channel();
        if answerers.marks.send(Request::Mark(text.to_owned(), sender)).is_err() {
            return error(ENDING);
        }
        return match time.await {
            Ok(Time(ns)) => format!("ok {ns}\n").into_bytes(),
            Err(_) => error(ENDING),
        };
    }
    if line == "snapshot" {
        let (sender, bytes) = oneshot::channel();
        if answerers.snapshots.send(Request::Snapshot(sender)).is_err() {
            return error(ENDING);
        }
        return match bytes.await {
            Ok(Ok(bytes)) => [format!("ok {}\n", bytes.len()).into_bytes(), bytes].concat(),
            Ok(Err(why)) => error(&why),
            Err(_) => error(ENDING),
        };
    }
    error("unknown request; the recording memtrace may be another version")
}

fn error(text: &str) -> Vec<u8> {
    format!("error {text}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    /// A served socket, asked with `request` by a client that reads to the end.
    fn ask(request: &'static [u8]) -> String {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("1.sock");
        let ((marks, mark_requests), (snapshots, snapshot_requests)) = (channel(), channel());
        let answering = std::thread::spawn(move || {
            for request in mark_requests.iter().chain(snapshot_requests.iter()) {
                match request {
                    Request::Mark(text, sender) => drop(sender.send(Time(text.len() as u64))),
                    Request::Snapshot(sender) => drop(sender.send(Ok(b"trace".to_vec()))),
                }
            }
        });
        let answer = runtime().block_on(async {
            let socket = bind(dir.path(), &path).expect("a socket");
            let control =
                Control { sockets: vec![socket], answerers: Answerers { marks, snapshots } };
            let client = async {
                let mut stream = UnixStream::connect(&path).await.expect("it listens");
                stream.write_all(request).await.expect("it reads");
                stream.shutdown().await.expect("it is open");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("it answers");
                answer
            };
            tokio::select! {
                answer = client => answer,
                () = control.serve() => String::new(),
            }
        });
        answering.join().expect("no panic");
        answer
    }

    #[test]
    fn mark_is_answered_with_its_time() {
        assert_eq!(ask(b"mark after warm-up\n"), "ok 13\n");
    }

    #[test]
    fn unknown_request_is_an_error() {
        assert!(ask(b"stop\n").starts_with("error unknown request"));
    }

    #[test]
    fn line_without_end_is_an_error() {
        assert!(ask(b"mark x").starts_with("error a request is one line"));
        assert!(ask(&[b'x'; MAX_LINE_BYTES]).starts_with("error a request is one line"));
    }

    #[test]
    fn empty_mark_is_an_error() {
        assert!(ask(b"mark \n").starts_with("error a mark has 1 to"));
    }

    #[test]
    fn socket_that_a_killed_recorder_left_is_replaced() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("1.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));

        let _runtime = runtime();
        let _context = _runtime.enter();
        let socket = bind(dir.path(), &path).expect("the old one is stale");

        let mode = fs::metadata(&socket.path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn socket_of_a_running_recorder_stays() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("1.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");

        let _runtime = runtime();
        let _context = _runtime.enter();
        let error = bind(dir.path(), &path).expect_err("somebody listens");

        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
