use std::io::Write as _;

use super::*;

fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// A map that the test writes.
struct Fixture {
    writer: File,
    names: JitNames,
    _root: tempfile::TempDir,
}

impl Fixture {
    fn new(text: &str) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        let mut writer = File::create(dir.path().join("tmp/perf-3.map")).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        let root = Root::Open { root: File::open(dir.path()).unwrap().into(), uid: own_uid() };
        let names = JitNames {
            process: ProcessFiles { pid: Pid(7), own_pid: 3 },
            root,
            map: None,
            awaited: BTreeSet::new(),
            unread: Unread::default(),
        };
        Fixture { writer, names, _root: dir }
    }

    /// The names found of what is awaited, and of these addresses.
    fn find(&mut self, addresses: &[u64]) -> Vec<String> {
        addresses.iter().for_each(|&address| self.names.saw(Avma(address)));
        let found = self.names.find_all();
        found.into_iter().map(|symbol| String::from_utf8(symbol.name).unwrap()).collect()
    }
}

#[test]
fn line_is_start_size_and_name() {
    let found = parse(b"7f3a80001000 40 JS:*handle /srv/a b.js:4:1\n");

    assert_eq!(found, Some((Avma(0x7f3a_8000_1000), 0x40, &b"JS:*handle /srv/a b.js:4:1"[..])));
}

#[test]
fn line_of_the_jvm_has_a_prefix() {
    let found = parse(b"0x00007f5c1d000100 0x0000000000000180 StubRoutines (1)\n");

    assert_eq!(found, Some((Avma(0x7f5c_1d00_0100), 0x180, &b"StubRoutines (1)"[..])));
}

#[test]
fn line_that_is_no_symbol_is_counted() {
    for line in ["", "x", "10", "10 20", "10 20 ", "g 20 f", "10 -20 f", "11111111111111111 1 f"] {
        assert_eq!(parse(line.as_bytes()), None, "{line:?}");
    }
    let mut map = Fixture::new("nonsense\n10 10 f\n");

    assert_eq!(map.find(&[0x10]), ["f"]);
    assert_eq!(map.names.unread, Unread { lines: 1, ..Unread::default() });
}

#[test]
fn symbol_is_given_once() {
    let mut map = Fixture::new("10 10 f\n20 10 g\n");

    assert_eq!(map.find(&[0x10, 0x1f]), ["f"]);
    assert_eq!(map.find(&[0x11, 0x20]), ["g"]);
    assert!(map.names.awaited.is_empty());
}

#[test]
fn address_waits_for_its_symbol() {
    let mut map = Fixture::new("10 10 f\n");
    assert_eq!(map.find(&[0x25]), Vec::<String>::new());

    map.writer.write_all(b"20 10 g").unwrap();
    assert_eq!(map.find(&[]), Vec::<String>::new());
    map.writer.write_all(b"h\n").unwrap();

    assert_eq!(map.find(&[]), ["gh"]);
}

#[test]
fn later_line_replaces_what_it_overlaps() {
    let mut map = Fixture::new("10 20 old\n20 20 new\n");

    assert_eq!(map.find(&[0x10, 0x30]), ["new"]);
    assert_eq!(map.names.awaited.len(), 1);
}

#[test]
fn map_that_is_written_anew_is_read_anew() {
    let mut map = Fixture::new("10 10 f\n");
    assert_eq!(map.find(&[0x10]), ["f"]);

    map.writer.set_len(0).unwrap();
    std::io::Seek::rewind(&mut map.writer).unwrap();
    map.writer.write_all(b"30 10 something_else\n40 10 h\n").unwrap();

    assert_eq!(map.find(&[0x30, 0x40]), ["something_else", "h"]);
}

#[test]
fn map_that_leads_elsewhere_is_not_followed() {
    let mut map = Fixture::new("");
    let path = map._root.path().join("tmp/perf-3.map");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(map._root.path().join("secret"), "10 10 secret\n").unwrap();
    std::os::unix::fs::symlink("../secret", &path).unwrap();

    assert_eq!(map.find(&[0x10]), Vec::<String>::new());
    assert_eq!(map.names.unread, Unread { files: 1, ..Unread::default() });
}

#[test]
fn fifo_is_not_waited_for() {
    let mut map = Fixture::new("");
    let path = map._root.path().join("tmp/perf-3.map");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();

    assert_eq!(map.find(&[0x10]), Vec::<String>::new());
    assert_eq!(map.names.unread, Unread { files: 1, ..Unread::default() });
}

#[test]
fn line_without_end_does_not_hide_what_follows() {
    let mut map = Fixture::new(&format!("10 10 {}", "x".repeat(2 * MAX_LINE_BYTES)));
    assert_eq!(map.find(&[0x10]), Vec::<String>::new());

    map.writer.write_all(b"\n20 10 g\n").unwrap();

    assert_eq!(map.find(&[0x20]), ["g"]);
}
