//! Files from debuginfod servers, by build id.
//!
//! In: `DEBUGINFOD_URLS` and a build id. Out: the path of a file in the cache, which is that of
//! elfutils' own client: what gdb or perf fetched is here, and what is fetched here is there.
//!
//! ```text
//!   GET URL/buildid/HEX/debuginfo ──→ CACHE/HEX/debuginfo       empty, mode 0: nobody has it
//! ```
//!
//! What comes is kept if it has the build id: a portal answers every request with its own page.
//! Whoever opens a file checks that again, since others fill the cache, too. A file is bounded in
//! size, a request in time, and a server that does not answer is not asked again. Where the files go
//! and how long they stay is elfutils' business, whose client also empties the cache; see
//! debuginfod-find(1).

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::find::has_build_id;
use super::{hex, mapped};

/// How long one request may take, unless `DEBUGINFOD_TIMEOUT` says otherwise; as elfutils'.
const TIMEOUT: Duration = Duration::from_secs(90);

/// How long a server has to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest file that is fetched, unless `DEBUGINFOD_MAXSIZE` says otherwise.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// How long nobody is asked again for what nobody had; as elfutils'.
const MISS_LIFETIME: Duration = Duration::from_secs(600);

/// More servers are not asked.
const MAX_SERVERS: usize = 16;

/// Which of the files of a build id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The program or library.
    Executable,
    /// Its debug information.
    DebugInfo,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Executable => "executable",
            Kind::DebugInfo => "debuginfo",
        }
    }
}

/// Servers, and a cache of what they gave.
#[derive(Debug)]
pub struct Debuginfod {
    servers: Vec<Server>,
    cache: PathBuf,
    timeout: Duration,
    max_bytes: u64,
    /// Hears what is asked for, since it may take long.
    announce: fn(&str),
}

#[derive(Debug)]
struct Server {
    url: String,
    is_silent: AtomicBool,
}

/// Why a server gave nothing.
enum Refusal {
    /// It does not have the file.
    NotThere,
    /// It cannot be reached, or fails.
    Silent(String),
    /// The file cannot be taken.
    Unusable(String),
    /// What came is another file, or none that can be read.
    Another(String),
}

impl Debuginfod {
    /// The servers that the environment names; `None` if it names none.
    ///
    /// `announce` hears of each request before it is made.
    pub fn from_environment(announce: fn(&str)) -> Option<Debuginfod> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Some(Debuginfod { announce, ..Debuginfod::from_variables(variable)? })
    }

    pub(super) fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Option<Debuginfod> {
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok().filter(|n| *n > 0);
        let urls = variable("DEBUGINFOD_URLS")?;
        let servers: Vec<Server> = urls
            .to_str()?
            .split_whitespace()
            .filter(|url| url.starts_with("http://") || url.starts_with("https://"))
            .take(MAX_SERVERS)
            .map(|url| Server {
                url: url.trim_end_matches('/').to_owned(),
                is_silent: AtomicBool::new(false),
            })
            .collect();
        let cache = variable("DEBUGINFOD_CACHE_PATH").map(PathBuf::from).or_else(|| {
            let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let caches = caches.or_else(|| Some(Path::new(&variable("HOME")?).join(".cache")))?;
            Some(caches.join("debuginfod_client"))
        })?;
        (!servers.is_empty()).then_some(Debuginfod {
            servers,
            cache,
            timeout: number("DEBUGINFOD_TIMEOUT").map_or(TIMEOUT, Duration::from_secs),
            max_bytes: number("DEBUGINFOD_MAXSIZE").unwrap_or(MAX_FILE_BYTES),
            announce: |_| {},
        })
    }

    /// The file of this build id, from the cache or a server; `None` if nobody has it.
    ///
    /// `rejected` counts what came in its place.
    pub(super) fn find(&self, build_id: &[u8], kind: Kind, rejected: &mut u64) -> Option<PathBuf> {
        // Shorter ones are no hashes.
        if build_id.len() < 8 {
            return None;
        }
        let path = self.cache.join(hex(build_id)).join(kind.name());
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > 0 => return Some(path),
            Ok(metadata) if is_recent(&metadata) => return None,
            Ok(_) | Err(_) => {}
        }
        match self.fetch(build_id, kind, &path, rejected) {
            Ok(true) => Some(path),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(
                    "cannot keep what debuginfod servers have in {}: {error}; set \
                     DEBUGINFOD_CACHE_PATH to a directory that can be written",
                    self.cache.display()
                );
                None
            }
        }
    }

    fn fetch(
        &self,
        build_id: &[u8],
        kind: Kind,
        path: &Path,
        rejected: &mut u64,
    ) -> io::Result<bool> {
        let id = hex(build_id);
        let directory = self.cache.join(&id);
        fs::create_dir_all(&directory)?;
        let mut everybody_answered = true;
        for server in &self.servers {
            if server.is_silent.load(Ordering::Relaxed) {
                everybody_answered = false;
                continue;
            }
            let url = format!("{}/buildid/{id}/{}", server.url, kind.name());
            // Beside its place, so that nobody sees half a file.
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            let downloaded = self.download(&url, file.as_file_mut());
            match downloaded.and_then(|()| check(file.path(), build_id)) {
                Ok(()) => {
                    file.persist(path).map_err(|error| error.error)?;
                    return Ok(true);
                }
                Err(Refusal::NotThere) => {}
                Err(Refusal::Silent(reason)) => {
                    everybody_answered = false;
                    server.is_silent.store(true, Ordering::Relaxed);
                    tracing::warn!("{} does not answer ({reason}); it is left out", server.url);
                }
                Err(Refusal::Unusable(reason)) => {
                    tracing::warn!("{url} cannot be used: {reason}");
                }
                Err(Refusal::Another(reason)) => {
                    *rejected += 1;
                    tracing::warn!("{url} is not the file: {reason}");
                }
            }
        }
        if everybody_answered {
            // Anew, since its age counts.
            let _ = fs::remove_file(path);
            let nothing = fs::File::create(path)?;
            nothing.set_permissions(fs::Permissions::from_mode(0o000))?;
        }
        Ok(false)
    }

    fn download(&self, url: &str, file: &mut fs::File) -> Result<(), Refusal> {
        (self.announce)(&format!("asking {url}"));
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(self.timeout))
            .user_agent(concat!("memtrace/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let response = agent.get(url).call();
        let response = response.map_err(|error| match error {
            // Servers say 400 and 410, too, of what they do not have.
            ureq::Error::StatusCode(400..=499) => Refusal::NotThere,
            error => Refusal::Silent(error.to_string()),
        })?;
        // One byte more tells a file that is too large from one that just fits.
        let mut body = response.into_body().into_reader().take(self.max_bytes + 1);
        let bytes =
            io::copy(&mut body, file).map_err(|error| Refusal::Silent(error.to_string()))?;
        match bytes {
            0 => Err(Refusal::NotThere),
            bytes if bytes > self.max_bytes => Err(Refusal::Unusable(format!(
                "it is larger than {} bytes; set DEBUGINFOD_MAXSIZE to fetch it all the same",
                self.max_bytes
            ))),
            _ => Ok(()),
        }
    }
}

/// Whether what came is the file with this build id.
fn check(path: &Path, build_id: &[u8]) -> Result<(), Refusal> {
    match mapped::open(path) {
        Ok(Ok(bytes)) if has_build_id(&bytes, build_id) => Ok(()),
        Ok(Ok(_)) => Err(Refusal::Another("it has another build id, or none".to_owned())),
        Ok(Err(miss)) => Err(Refusal::Another(miss.to_string())),
        Err(error) => Err(Refusal::Another(error.to_string())),
    }
}

fn is_recent(metadata: &fs::Metadata) -> bool {
    let age = metadata.modified().map(|time| SystemTime::now().duration_since(time));
    age.is_ok_and(|age| age.unwrap_or_default() < MISS_LIFETIME)
}
