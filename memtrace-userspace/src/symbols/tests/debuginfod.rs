//! Files from a server, which the test runs itself, on the loopback device.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::super::debuginfod::{Debuginfod, Kind};

const BUILD_ID: &[u8; 20] = &[0xab; 20];

/// What the server answers each request.
type Answer = fn(&str) -> Vec<u8>;

/// A server for as long as the test runs.
struct Server {
    url: String,
    /// The paths that were asked for.
    asked: Receiver<String>,
}

impl Server {
    fn start(answer: Answer) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, asked) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                let path = request.split(' ').nth(1).unwrap().to_owned();
                // The rest of the request, up to the empty line.
                lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
                let answer = answer(&path);
                if sender.send(path).is_err() {
                    return;
                }
                // A client that has read enough may be gone.
                let _ = stream.write_all(&answer);
            }
        });
        Server { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.try_iter().collect()
    }
}

fn found(body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The smallest file that has a build id.
fn file(build_id: &[u8; 20]) -> Vec<u8> {
    let note = [&[4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", build_id].concat();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(120, 0);
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    // A shared object for x86-64 with one program header, behind the file's own.
    put(16, &3u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    // PT_NOTE: where it lies in the file, its size and its alignment.
    put(64, &4u32.to_le_bytes());
    put(64 + 8, &120u64.to_le_bytes());
    put(64 + 32, &(note.len() as u64).to_le_bytes());
    put(64 + 48, &4u64.to_le_bytes());
    [elf, note].concat()
}

fn not_found() -> Vec<u8> {
    b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()
}

fn client(urls: &str, cache: &Path, max_bytes: Option<&str>) -> Debuginfod {
    let client = Debuginfod::from_variables(|name| match name {
        "DEBUGINFOD_URLS" => Some(OsString::from(urls)),
        "DEBUGINFOD_CACHE_PATH" => Some(cache.into()),
        "DEBUGINFOD_TIMEOUT" => Some("20".into()),
        "DEBUGINFOD_MAXSIZE" => max_bytes.map(OsString::from),
        _ => None,
    });
    client.unwrap()
}

#[test]
fn file_is_fetched_once_and_kept_as_elfutils_keeps_it() {
    let server = Server::start(|_| found(&file(BUILD_ID)));
    let cache = tempfile::tempdir().unwrap();

    let first =
        client(&server.url, cache.path(), None).find(BUILD_ID, Kind::DebugInfo, &mut 0).unwrap();
    let second = client(&server.url, cache.path(), None).find(BUILD_ID, Kind::DebugInfo, &mut 0);

    let id = "ab".repeat(20);
    assert_eq!(first, cache.path().join(&id).join("debuginfo"));
    assert_eq!(second.as_ref(), Some(&first));
    assert_eq!(fs::read(&first).unwrap(), file(BUILD_ID));
    assert_eq!(server.asked(), [format!("/buildid/{id}/debuginfo")]);
}

#[test]
fn what_nobody_has_is_not_asked_for_again() {
    let server = Server::start(|_| not_found());
    let cache = tempfile::tempdir().unwrap();
    let client = client(&server.url, cache.path(), None);

    assert_eq!(client.find(BUILD_ID, Kind::Executable, &mut 0), None);
    assert_eq!(client.find(BUILD_ID, Kind::Executable, &mut 0), None);

    assert_eq!(server.asked().len(), 1);
    let entry = cache.path().join("ab".repeat(20)).join("executable");
    assert_eq!(fs::metadata(entry).unwrap().len(), 0);
}

#[test]
fn next_server_is_asked_for_what_the_first_does_not_have() {
    let (first, second) =
        (Server::start(|_| not_found()), Server::start(|_| found(&file(BUILD_ID))));
    let cache = tempfile::tempdir().unwrap();
    let urls = format!("{} ftp://nobody {}/", first.url, second.url);

    let found = client(&urls, cache.path(), None).find(BUILD_ID, Kind::DebugInfo, &mut 0);

    assert!(found.is_some());
    assert_eq!((first.asked().len(), second.asked().len()), (1, 1));
}

#[test]
fn server_that_fails_is_left_out_and_its_answer_not_kept() {
    let server = Server::start(|_| b"nonsense\r\n\r\n".to_vec());
    let cache = tempfile::tempdir().unwrap();
    let client = client(&server.url, cache.path(), None);

    assert_eq!(client.find(BUILD_ID, Kind::DebugInfo, &mut 0), None);
    assert_eq!(client.find(&[1; 20], Kind::DebugInfo, &mut 0), None);

    assert_eq!(server.asked().len(), 1);
    assert!(!cache.path().join("ab".repeat(20)).join("debuginfo").exists());
}

#[test]
fn file_that_is_cut_short_is_not_kept() {
    let server = Server::start(|_| {
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100\r\n\r\nhalf".to_vec()
    });
    let cache = tempfile::tempdir().unwrap();

    let found = client(&server.url, cache.path(), None).find(BUILD_ID, Kind::DebugInfo, &mut 0);

    assert_eq!(found, None);
}

#[test]
fn what_is_not_the_file_is_not_kept() {
    let portal = Server::start(|_| found(b"<html>Accept our terms</html>"));
    let other = Server::start(|_| found(&file(&[1; 20])));
    let server = Server::start(|_| found(&file(BUILD_ID)));
    let find = |urls: &str| {
        let cache = tempfile::tempdir().unwrap();
        let found = client(urls, cache.path(), None).find(BUILD_ID, Kind::DebugInfo, &mut 0);
        found.map(|path| fs::read(path).unwrap())
    };

    assert_eq!(find(&format!("{} {}", portal.url, other.url)), None);
    assert_eq!(find(&format!("{} {} {}", portal.url, other.url, server.url)), Some(file(BUILD_ID)));
}

#[test]
fn file_that_is_too_large_is_not_kept() {
    let server = Server::start(|_| found(&[b'x'; 1000]));
    let cache = tempfile::tempdir().unwrap();

    let found =
        client(&server.url, cache.path(), Some("999")).find(BUILD_ID, Kind::DebugInfo, &mut 0);

    assert_eq!(found, None);
}

#[test]
fn nobody_is_asked_without_servers_or_for_short_ids() {
    let none = Debuginfod::from_variables(|name| (name == "HOME").then(|| "/h".into()));
    let server = Server::start(|_| found(b"x"));
    let cache = tempfile::tempdir().unwrap();

    assert!(none.is_none());
    assert_eq!(
        client(&server.url, cache.path(), None).find(&[1, 2], Kind::DebugInfo, &mut 0),
        None
    );
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn names_come_from_a_server() {
    let Some(stripped) = super::separate::Stripped::build(&[]) else { return };
    let cache = tempfile::tempdir().unwrap();
    let id = super::super::hex(stripped.build_id());
    fs::create_dir(cache.path().join(&id)).unwrap();
    // As if it had been fetched before; that it can be fetched is tested above.
    fs::copy(&stripped.debug, cache.path().join(&id).join("debuginfo")).unwrap();
    let server = Server::start(|_| not_found());

    let debuginfod = Some(Arc::new(client(&server.url, cache.path(), None)));
    let options = super::super::Options { debuginfod, ..super::separate::looking_in(&[], &[]) };
    let frames = stripped.symbolize(options).unwrap();

    assert_eq!(frames, stripped.frames);
    assert_eq!(server.asked(), Vec::<String>::new());
}
