use std::os::unix::fs::PermissionsExt as _;

use memtrace_common::unwind::cfa;
use tempfile::TempDir;

use super::*;

/// A table that differs from any other with another `rows`.
fn table(rows: u32) -> Table {
    let row = |index: u32| Row {
        pc: index * 16,
        cfa_offset: 8 + (index % 2) as i16 * 8,
        cfa_kind: cfa::RSP,
        rbp_offset_by_8: 0,
    };
    let buckets = (0..=rows / 16).map(|bucket| (bucket * 16).min(rows - 1)).collect();
    let skipped = Skipped { broken_fdes: 3, overlapping_fdes: 5, ..Skipped::default() };
    Table { base: Svma(0x40_1000), rows: (0..rows).map(row).collect(), buckets, skipped }
}

fn identity(inode: u64) -> Identity {
    let file = FileStamp { device: 0xfe01, inode, bytes: 9, modified_s: 1, ..FileStamp::default() };
    Identity::new(&[0xab; 20], file)
}

struct Fixture {
    directory: TempDir,
    cache: TableCache,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let cache = TableCache::open(directory.path()).unwrap();
        Fixture { directory, cache }
    }

    fn entry(&self, identity: &Identity) -> PathBuf {
        self.directory.path().join(identity.entry_name())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn table_comes_back_as_it_was_kept() {
    let Fixture { directory, cache } = Fixture::new();
    cache.store(&identity(1), &table(5000));

    // Another session, which opens the directory anew.
    let later = TableCache::open(directory.path()).unwrap();

    assert_eq!(later.load(&identity(1)), Some(table(5000)));
}

#[test]
fn table_of_a_real_file_comes_back_as_it_was_compiled() {
    let bytes = fs::read("/proc/self/exe").unwrap();
    let compiled = cfi::compile(&object::File::parse(&*bytes).unwrap()).unwrap();
    let Fixture { directory: _directory, cache } = Fixture::new();
    cache.store(&identity(1), &compiled);

    assert!(cache.load(&identity(1)) == Some(compiled));
}

#[test]
fn file_that_is_not_known_has_no_table() {
    let Fixture { directory: _directory, cache } = Fixture::new();

    assert_eq!(cache.load(&identity(1)), None);
}

#[test]
fn table_of_a_file_that_has_changed_is_not_used() {
    let Fixture { directory: _directory, cache } = Fixture::new();
    cache.store(&identity(1), &table(10));
    let kept = identity(1);

    let changed = [
        Identity { build_id: vec![0xac; 20], ..kept.clone() },
        Identity { build_id: Vec::new(), ..kept.clone() },
        Identity { file: FileStamp { bytes: 10, ..kept.file }, ..kept.clone() },
        Identity { file: FileStamp { modified_ns: 1, ..kept.file }, ..kept.clone() },
        Identity { file: FileStamp { changed_s: 1, ..kept.file }, ..kept.clone() },
        Identity { file: FileStamp { inode: 2, ..kept.file }, ..kept.clone() },
        Identity { file: FileStamp { device: 2, ..kept.file }, ..kept },
    ];

    for identity in changed {
        // Even where its entry has the very name.
        let named = cache.path(&identity.entry_name());
        if !named.exists() {
            fs::copy(cache.path(&kept_name()), named).unwrap();
        }
        assert_eq!(cache.load(&identity), None, "{identity:?}");
    }
}

fn kept_name() -> String {
    identity(1).entry_name()
}

#[test]
fn damaged_entry_is_not_used_and_is_replaced() {
    let fixture = Fixture::new();
    let entry = fixture.entry(&identity(1));
    fixture.cache.store(&identity(1), &table(40));
    let whole = fs::read(&entry).unwrap();

    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&entry, damaged).unwrap();
        assert_eq!(fixture.cache.load(&identity(1)), None, "byte {at}");
    }

    fixture.cache.store(&identity(1), &table(40));
    assert_eq!(fixture.cache.load(&identity(1)), Some(table(40)));
}

#[test]
fn entry_of_another_length_is_not_used() {
    let fixture = Fixture::new();
    let entry = fixture.entry(&identity(1));
    fixture.cache.store(&identity(1), &table(40));
    let whole = fs::read(&entry).unwrap();

    for length in 0..whole.len() {
        fs::write(&entry, &whole[..length]).unwrap();
        assert_eq!(fixture.cache.load(&identity(1)), None, "{length} bytes");
    }
    fs::write(&entry, [&whole[..], &[0]].concat()).unwrap();
    assert_eq!(fixture.cache.load(&identity(1)), None);
}

/// Writes an entry whose checksum is right, whatever it says.
fn forge(fixture: &Fixture, identity: &Identity, table: &Table, change: impl Fn(&mut Header)) {
    let mut header = Header::new(identity, table);
    change(&mut header);
    header.checksum = checksum(&header, &table.rows, &table.buckets);
    let parts = [header.as_bytes(), table.rows.as_bytes(), table.buckets.as_bytes()];
    fs::write(fixture.entry(identity), parts.concat()).unwrap();
}

#[test]
fn entry_of_another_version_is_not_used() {
    let fixture = Fixture::new();
    forge(&fixture, &identity(1), &table(40), |_| ());
    assert_eq!(fixture.cache.load(&identity(1)), Some(table(40)));

    forge(&fixture, &identity(1), &table(40), |header| header.version += 1);

    assert_eq!(fixture.cache.load(&identity(1)), None);
}

#[test]
fn entry_that_lies_about_its_lengths_allocates_nothing() {
    let fixture = Fixture::new();

    for (rows, buckets) in [(u64::MAX, 0), (1 << 61, 1), (0, u64::MAX), (1 << 40, 1 << 40)] {
        forge(&fixture, &identity(1), &table(40), |header| {
            (header.rows, header.buckets) = (rows, buckets);
        });
        assert_eq!(fixture.cache.load(&identity(1)), None);
    }
    forge(&fixture, &identity(1), &table(40), |header| header.build_id_bytes = u64::MAX);
    assert_eq!(fixture.cache.load(&identity(1)), None);
}

#[test]
fn table_that_is_out_of_order_is_not_used() {
    let fixture = Fixture::new();
    let changes: [fn(&mut Table); 4] = [
        |table| table.rows.swap(3, 4),
        |table| table.buckets[1] = 40,
        |table| table.buckets.swap(0, 1),
        |table| table.buckets.clear(),
    ];

    for change in changes {
        let mut table = table(40);
        change(&mut table);
        forge(&fixture, &identity(1), &table, |_| ());
        assert_eq!(fixture.cache.load(&identity(1)), None);
    }
}

#[test]
fn entry_that_others_may_have_written_is_not_used_and_is_replaced() {
    let fixture = Fixture::new();
    let entry = fixture.entry(&identity(1));
    fixture.cache.store(&identity(1), &table(40));

    fs::set_permissions(&entry, fs::Permissions::from_mode(0o622)).unwrap();
    assert_eq!(fixture.cache.load(&identity(1)), None);

    fixture.cache.store(&identity(1), &table(40));
    assert_eq!(fixture.cache.load(&identity(1)), Some(table(40)));

    let elsewhere = fixture.directory.path().join("elsewhere");
    fs::rename(&entry, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &entry).unwrap();
    assert_eq!(fixture.cache.load(&identity(1)), None);
}

#[test]
fn entry_or_directory_of_another_user_is_not_used() {
    let fixture = Fixture::new();
    let entry = fixture.entry(&identity(1));
    fixture.cache.store(&identity(1), &table(40));
    let nobody = Some(65534);
    if std::os::unix::fs::chown(&entry, nobody, None).is_err() {
        // Only root can give files away.
        return;
    }

    assert_eq!(fixture.cache.load(&identity(1)), None);
    std::os::unix::fs::chown(fixture.directory.path(), nobody, None).unwrap();
    assert!(TableCache::open(fixture.directory.path()).is_none());
}

#[test]
fn directory_that_others_may_write_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();

    assert!(TableCache::open(directory.path()).is_none());
}

#[test]
fn directory_is_made_for_its_user_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");

    assert!(TableCache::open(&path).is_some());
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(TableCache::open(&file).is_none());
}

#[test]
fn entries_not_used_for_longest_go_when_there_are_too_many() {
    let mut fixture = Fixture::new();
    let entry_bytes = Header::new(&identity(1), &table(1000)).entry_bytes().unwrap();
    fixture.cache.max_bytes = 3 * entry_bytes;
    let use_at = |fixture: &Fixture, inode, seconds| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let entry = File::open(fixture.entry(&identity(inode))).unwrap();
        entry.set_modified(time).unwrap();
    };
    for inode in 1..=3 {
        fixture.cache.store(&identity(inode), &table(1000));
        use_at(&fixture, inode, inode);
    }
    assert_eq!(fixture.names().len(), 3);

    // A use makes the oldest one the newest.
    assert!(fixture.cache.load(&identity(1)).is_some());
    fixture.cache.store(&identity(4), &table(1000));

    let left = [1, 3, 4].map(|inode| identity(inode).entry_name());
    assert_eq!(fixture.names(), left);
}

#[test]
fn table_that_is_larger_than_all_may_be_is_not_kept() {
    let mut fixture = Fixture::new();
    fixture.cache.max_bytes = 1000;

    fixture.cache.store(&identity(1), &table(1000));

    assert_eq!(fixture.names(), [""; 0]);
}

#[test]
fn what_a_killed_session_left_behind_is_removed_after_a_while() {
    let fixture = Fixture::new();
    let left = ["old", "young"].map(|name| {
        let path = fixture.directory.path().join(format!("{UNFINISHED}{name}"));
        fs::write(&path, "half a table").unwrap();
        path
    });
    let old = SystemTime::now() - 2 * ABANDONED;
    File::options().write(true).open(&left[0]).unwrap().set_modified(old).unwrap();

    fixture.cache.store(&identity(1), &table(10));

    assert!(!left[0].exists());
    assert!(left[1].exists());
}

#[test]
fn sessions_that_keep_the_same_table_at_once_leave_a_whole_one() {
    let Fixture { directory, cache: _cache } = Fixture::new();

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let cache = TableCache::open(directory.path()).unwrap();
                for round in 0..20 {
                    // What another one has kept meanwhile is whole, too.
                    let found = cache.load(&identity(1));
                    assert!(round == 0 || found == Some(table(3000)));
                    cache.store(&identity(1), &table(3000));
                }
            });
        }
    });

    let cache = TableCache::open(directory.path()).unwrap();
    assert_eq!(cache.load(&identity(1)), Some(table(3000)));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
