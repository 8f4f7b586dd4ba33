use super::*;

fn analysis(segments: &[(u64, u64, u64)]) -> Analysis {
    let segments = segments
        .iter()
        .map(|&(offset, size, svma)| (FileOffset(offset), size, Svma(svma)))
        .collect();
    Analysis { segments, ..Analysis::nothing(Image::Anonymous, Reading::Done) }
}

#[test]
fn load_bias_is_the_distance_between_mapping_and_segment() {
    let elf = analysis(&[(0x1000, 0x2000, 0x401000)]);

    assert_eq!(elf.load_bias(Avma(0x401000), FileOffset(0x1000)), Some(0));
    assert_eq!(elf.load_bias(Avma(0x7000_0040_1000), FileOffset(0x1000)), Some(0x7000_0000_0000));
}

#[test]
fn load_bias_of_a_segment_that_starts_within_a_page_is_that_of_its_page() {
    // gold and lld: the segment's first byte is at 0x1234, the mapping's at 0x1000.
    let elf = analysis(&[(0x1234, 0x2000, 0x2234)]);

    assert_eq!(elf.load_bias(Avma(0x7000_0000_2000), FileOffset(0x1000)), Some(0x7000_0000_0000));
}

#[test]
fn load_bias_of_the_rest_of_a_split_mapping_is_the_same() {
    let elf = analysis(&[(0, 0x500, 0), (0x1000, 0x3000, 0x5000)]);

    assert_eq!(elf.load_bias(Avma(0x7000_0000_7000), FileOffset(0x3000)), Some(0x7000_0000_0000));
}

#[test]
fn mapping_of_no_executable_segment_has_no_load_bias() {
    let elf = analysis(&[(0x1000, 0x2000, 0x1000)]);

    assert_eq!(elf.load_bias(Avma(0x7000_0000_0000), FileOffset(0)), None);
    assert_eq!(elf.load_bias(Avma(0x7000_0000_0000), FileOffset(0x3000)), None);
}

#[test]
fn load_bias_of_hostile_segments_does_not_overflow() {
    let elf = analysis(&[(0x1000, u64::MAX, 0), (0, 0x1000, u64::MAX)]);

    assert_eq!(elf.load_bias(Avma(0), FileOffset(0)), Some(1));
}

/// Our own mapping of the first page of a file.
fn mapping_of(file: &File) -> (memmap2::Mmap, Mapping) {
    // SAFETY: the bytes are never looked at.
    let memory = unsafe { memmap2::MmapOptions::new().len(4096).map(file) }.unwrap();
    let start = memory.as_ptr() as u64;
    let mappings = process::mappings(own_pid()).unwrap();
    let mapping = mappings.into_iter().find(|mapping| mapping.start.0 == start).unwrap();
    (memory, mapping)
}

fn own_pid() -> Pid {
    Pid(std::process::id())
}

fn build_id(images: &Images, id: ImageId) -> Vec<u8> {
    match &images.get(id).unwrap().image {
        Image::File { build_id, .. } => build_id.clone(),
        Image::Vdso | Image::Anonymous => panic!("it is a file"),
    }
}

#[test]
fn file_is_read_once_as_long_as_it_does_not_change() {
    let file = File::open("/proc/self/exe").unwrap();
    let ((_first, one), (_second, other)) = (mapping_of(&file), mapping_of(&file));
    let mut images = Images::new(None, Vec::new(), Watch::Inside);

    let ids = images.read(own_pid(), &[&one, &other]);
    let again = images.read(own_pid(), &[&other]);

    assert_eq!(ids, [ImageId(0), ImageId(0)]);
    assert_eq!(again, [ImageId(0)]);
}

#[test]
fn file_rewritten_in_place_is_read_again() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut File::open("/proc/self/exe").unwrap(), &mut file).unwrap();
    let (_memory, mapping) = mapping_of(file.as_file());
    let mut images = Images::new(None, Vec::new(), Watch::Inside);
    let before = images.read(own_pid(), &[&mapping]);

    std::fs::write(file.path(), "not a program any more").unwrap();
    let after = images.read(own_pid(), &[&mapping]);

    assert_ne!(before, after);
    assert_ne!(build_id(&images, before[0]), b"");
    assert_eq!(build_id(&images, after[0]), b"");
}

#[test]
fn file_that_was_only_touched_stays_the_same_image() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut File::open("/proc/self/exe").unwrap(), &mut file).unwrap();
    let (_memory, mapping) = mapping_of(file.as_file());
    let mut images = Images::new(None, Vec::new(), Watch::Inside);
    let before = images.read(own_pid(), &[&mapping]);

    file.as_file().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let after = images.read(own_pid(), &[&mapping]);

    assert_eq!(before, after);
}

#[test]
fn image_that_is_forgotten_is_read_again_under_another_id() {
    let file = File::open("/proc/self/exe").unwrap();
    let (_memory, mapping) = mapping_of(&file);
    let mut images = Images::new(None, Vec::new(), Watch::Inside);
    images.read(own_pid(), &[&mapping]);

    let forgotten = images.forget_unless(|_| false);
    let ids = images.read(own_pid(), &[&mapping]);

    assert_eq!(forgotten, [ImageId(0)]);
    assert_eq!(ids, [ImageId(1)]);
    assert!(images.get(ImageId(0)).is_none());
}

#[test]
fn table_of_a_large_file_is_kept_and_found() {
    let file = File::open("/proc/self/exe").unwrap();
    let (_memory, mapping) = mapping_of(&file);
    let directory = tempfile::tempdir().unwrap();
    let session = || {
        let mut images = Images::new(TableCache::open(directory.path()), Vec::new(), Watch::Inside);
        let ids = images.read(own_pid(), &[&mapping]);
        let analysis = Arc::clone(images.get(ids[0]).unwrap());
        images.save(&ids);
        analysis
    };

    let (cold, warm) = (session(), session());

    assert!(cold.unsaved.is_some() && warm.unsaved.is_none());
    assert!(cold.table == warm.table && cold.table.is_some());
}
