//! A debuginfod server on the loopback device, as good or as bad as a test wants it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, Result};

/// How a server treats who asks it for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// It sends the file.
    Gives,
    /// It closes the connection in the middle of the file.
    Cuts,
    /// It takes the question and never answers.
    Hangs,
    /// It sends the head of an answer and half of the file, and then nothing more.
    Stalls,
}

/// A server that runs until the test ends.
#[derive(Debug)]
pub struct Server {
    /// For `DEBUGINFOD_URLS`.
    pub url: String,
    asked: Receiver<String>,
}

impl Server {
    /// Starts a server of these files: `BUILD_ID/debuginfo` or `BUILD_ID/executable`, and where
    /// the file is. It answers 404 to everything else.
    pub fn start(manners: Manners, files: &[(String, &Path)]) -> Result<Server> {
        let mut contents = HashMap::new();
        for (name, path) in files {
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            contents.insert(format!("/buildid/{name}"), bytes);
        }
        let listener = TcpListener::bind("127.0.0.1:0").context("listen on the loopback device")?;
        let url = format!("http://{}", listener.local_addr().context("the server's address")?);
        let (sender, asked) = channel();
        let contents = Arc::new(contents);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (contents, sender) = (Arc::clone(&contents), sender.clone());
                // A client that goes away ends its connection, and nothing else.
                thread::spawn(move || answer(stream, manners, &contents, &sender));
            }
        });
        Ok(Server { url, asked })
    }

    /// The paths that it was asked for since this was called last.
    pub fn asked(&self) -> Vec<String> {
        self.asked.try_iter().collect()
    }
}

/// Reads one request and answers it; the connection ends with this.
fn answer(
    stream: TcpStream,
    manners: Manners,
    contents: &HashMap<String, Vec<u8>>,
    asked: &Sender<String>,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    lines.by_ref().take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
    let file = contents.get(&path);
    asked.send(path).ok()?;
    if manners == Manners::Hangs {
        // Until the client has had enough of it.
        lines.count();
        return Some(());
    }
    let mut stream = stream;
    let status = if file.is_some() { "200 OK" } else { "404 Not Found" };
    let body = file.map_or(&[][..], Vec::as_slice);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    match manners {
        Manners::Gives | Manners::Hangs => stream.write_all(body).ok()?,
        Manners::Cuts => stream.write_all(&body[..length / 2]).ok()?,
        Manners::Stalls => {
            stream.write_all(&body[..length / 2]).ok()?;
            lines.count();
        }
    }
    Some(())
}
