//! The table against gimli's own evaluation, for the files of this machine.

use std::time::Instant;

use gimli::{
    CfaRule, CieOrFde, PartialFrameDescriptionEntry, RegisterRule, UnwindContext, UnwindExpression,
    UnwindTableRow,
};

use super::*;

/// Files to compare; those that are missing are skipped, except the first.
const FILES: &[&str] = &[
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libm.so.6",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libpython3.11.so",
    "/usr/bin/perl",
    "/usr/bin/python3",
    "/usr/bin/sqlite3",
    "/usr/bin/redis-server",
    "/usr/bin/node",
];

/// Every file has at most this share of rows that are unsupported; perlasm's code in libcrypto
/// and node, which never calls an allocator, makes the most of them.
const MAX_UNSUPPORTED_SHARE: f64 = 0.01;

/// At most about this many functions of a file are compared, evenly spread.
const MAX_FUNCTIONS: usize = 4000;

#[test]
fn tables_of_real_files_agree_with_gimli() {
    for (at, path) in FILES.iter().enumerate() {
        let Ok(data) = std::fs::read(path) else {
            assert_ne!(at, 0, "{path} is needed");
            println!("{path}: absent");
            continue;
        };
        let elf = object::File::parse(data.as_slice()).unwrap();
        let start = Instant::now();
        let table = compile(&elf).unwrap();
        let elapsed = start.elapsed();

        assert_well_formed(&table);
        let compared = compare(&elf, &table, path) + compare_gaps(&elf, &table, path);
        let unsupported: u64 = table.skipped.unsupported.iter().sum();
        let share = unsupported as f64 / table.rows.len() as f64;
        println!(
            "{path}: {compared} pcs, {} rows, {unsupported} unsupported ({:.3} %), {elapsed:?}",
            table.rows.len(),
            share * 100.0,
        );
        assert!(share <= MAX_UNSUPPORTED_SHARE, "{path}: {:?}", table.skipped);
    }
}

/// The vDSO has no file; its image is read out of this process.
#[test]
fn table_of_the_vdso_agrees_with_gimli() {
    use std::os::unix::fs::FileExt as _;

    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let Some(line) = maps.lines().find(|line| line.ends_with("[vdso]")) else {
        return;
    };
    let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
    let start = u64::from_str_radix(start, 16).unwrap();
    let end = u64::from_str_radix(end, 16).unwrap();
    let mut image = vec![0; (end - start) as usize];
    std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, start).unwrap();

    let elf = object::File::parse(image.as_slice()).unwrap();
    let table = compile(&elf).unwrap();

    assert_well_formed(&table);
    assert!(compare(&elf, &table, "vdso") > 0);
    assert_eq!(table.skipped, Skipped::default());
}

#[test]
fn libc_has_its_roots_and_its_signal_trampoline() {
    let data = std::fs::read(FILES[0]).unwrap();
    let table = compile(&object::File::parse(data.as_slice()).unwrap()).unwrap();

    let of_kind = |kind| table.rows.iter().filter(move |row| row.cfa_kind == kind);
    let signal: Vec<_> = of_kind(cfa::SIGNAL).map(|row| row.cfa_offset).collect();
    assert_eq!(signal, [0]);
    // The new threads in clone and clone3.
    assert_eq!(of_kind(cfa::ROOT).count(), 2);
    assert_eq!(of_kind(cfa::PLT).count(), 1);
}

#[test]
fn start_of_a_program_is_a_root() {
    let data = std::fs::read("/proc/self/exe").unwrap();
    let elf = object::File::parse(data.as_slice()).unwrap();

    let table = compile(&elf).unwrap();

    assert_eq!(lookup(&table, Svma(elf.entry())).cfa_kind, cfa::ROOT);
}

/// Checks what the kernel's search relies on.
fn assert_well_formed(table: &Table) {
    assert_eq!(table.rows[0].pc, 0);
    assert_eq!(table.base.0 % 256, 0);
    for pair in table.rows.windows(2) {
        assert!(pair[0].pc < pair[1].pc);
        assert_ne!(pair[0], Row { pc: pair[0].pc, ..pair[1] });
    }
    for (bucket, row) in table.buckets.iter().enumerate() {
        let last = table.rows.partition_point(|row| row.pc as usize <= bucket * 256) - 1;
        assert_eq!(*row as usize, last);
    }
}

/// Compares whether there is a row at all, at addresses all over the text.
fn compare_gaps(elf: &object::File<'_>, table: &Table, path: &str) -> usize {
    let section = elf.section_by_name(".eh_frame").unwrap();
    let data = section.uncompressed_data().unwrap();
    let frames = EhFrame::new(&data, LittleEndian);
    let bases = base_addresses(elf);
    let mut ranges = Vec::new();
    for partial in fdes(&frames, &bases) {
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        ranges.push(fde.initial_address()..fde.end_address());
    }
    ranges.sort_by_key(|range| range.start);

    let text = Text::of(elf).unwrap();
    // An odd step meets all alignments.
    let step = (u64::from(text.bytes) / 5000) | 1;
    let pcs = (0..u64::from(text.bytes)).step_by(step as usize).map(|pc| text.base.0 + pc);
    pcs.map(|pc| {
        let before = ranges.partition_point(|range| range.start <= pc);
        let covered = before > 0 && ranges[before - 1].contains(&pc);
        let found = lookup(table, Svma(pc)).cfa_kind != cfa::NONE;
        assert_eq!(found, covered, "{path} at {pc:#x}");
    })
    .count()
}

/// Every FDE of a section.
fn fdes<'bases, 'data>(
    frames: &EhFrame<Bytes<'data>>,
    bases: &'bases BaseAddresses,
) -> Vec<PartialFrameDescriptionEntry<'bases, EhFrame<Bytes<'data>>, Bytes<'data>>> {
    let mut entries = frames.entries(bases);
    let mut fdes = Vec::new();
    while let Some(entry) = entries.next().unwrap() {
        match entry {
            CieOrFde::Cie(_) => {}
            CieOrFde::Fde(partial) => fdes.push(partial),
        }
    }
    fdes
}

/// Compares the table with gimli at the edges and in the middle of every row of many functions.
fn compare(elf: &object::File<'_>, table: &Table, path: &str) -> usize {
    let section = elf.section_by_name(".eh_frame").unwrap();
    let data = section.uncompressed_data().unwrap();
    let frames = EhFrame::new(&data, LittleEndian);
    let bases = base_addresses(elf);
    let mut context = UnwindContext::new();
    let fdes = fdes(&frames, &bases);

    let mut compared = 0;
    for partial in fdes.iter().step_by(fdes.len().div_ceil(MAX_FUNCTIONS).max(1)) {
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        let signal = fde.is_signal_trampoline();
        let mut rows = fde.rows(&frames, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let (first, end) = (row.start_address(), row.end_address());
            if first >= end {
                continue;
            }
            let expected = expect(&frames, row, signal);
            for pc in [first, first + (end - first) / 2, end - 1] {
                let found = lookup(table, Svma(pc));
                assert_eq!(Row { pc: 0, ..found }, expected, "{path} at {pc:#x}: {row:?}");
                compared += 1;
            }
        }
    }
    compared
}

/// The row that gimli's rules ask for, written as plainly as possible.
fn expect(frames: &EhFrame<Bytes<'_>>, rules: &UnwindTableRow<usize>, signal: bool) -> Row {
    let code = |expression: &UnwindExpression<usize>| expression.get(frames).unwrap().0.slice();
    let unsupported = row(0, cfa::UNSUPPORTED, 0, 0);
    match rules.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return row(0, cfa::ROOT, 0, 0),
        // breg7 rsp+168
        Some(RegisterRule::Expression(at)) if signal && code(&at) == [0x77, 0xa8, 1] => {
            return row(0, cfa::SIGNAL, 0, 0);
        }
        Some(RegisterRule::Offset(-8)) if rules.register(X86_64::RSP).is_none() && !signal => {}
        _ => return unsupported,
    }
    let mut saved = match rules.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => Some(0),
        Some(RegisterRule::Offset(bytes @ -1024..=1016)) if bytes % 8 == 0 && bytes != 0 => {
            Some((bytes / 8) as i8)
        }
        _ => None,
    };
    let (kind, offset) = match rules.cfa() {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => match *offset {
            -0x8000..=0x7fff => (cfa::RSP, *offset as i16),
            0x8000..=0x7f_ffff => (0x80 + (*offset / 0x1_0000) as u8, *offset as i16),
            _ => return unsupported,
        },
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset: offset @ -0x8000..=0x7fff } => {
            (cfa::RBP, *offset as i16)
        }
        CfaRule::RegisterAndOffset { .. } => return unsupported,
        CfaRule::Expression(expression) => match code(expression) {
            [0x77, 8, 0x80, 0, 0x3f, 0x1a, least @ 0x30..0x40, 0x2a, 0x33, 0x24, 0x22] => {
                (cfa::PLT, i16::from(*least - 0x30))
            }
            // breg6 and breg7 with an operand of one byte; deref.
            [0x76, offset @ 0..0x80, 0x06] => {
                saved = match rules.register(X86_64::RBP) {
                    Some(RegisterRule::Expression(at)) if code(&at) == [0x76, 0] => Some(0),
                    _ => None,
                };
                (cfa::DEREF_RBP, sleb(*offset))
            }
            [0x77, offset @ 0..0x80, 0x06] => (cfa::DEREF_RSP, sleb(*offset)),
            _ => return unsupported,
        },
    };
    saved.map_or(unsupported, |saved| row(0, kind, offset, saved))
}

/// The value of a signed LEB128 number of one byte.
fn sleb(byte: u8) -> i16 {
    if byte < 0x40 { i16::from(byte) } else { i16::from(byte) - 0x80 }
}
