//! Files that lie.

use memtrace_common::unwind::RBP_SAME;
use proptest::prelude::*;

use super::*;

#[test]
fn other_machines_are_refused() {
    let mut file = elf(256, &[]);
    file[18] = 183; // AArch64

    let error = compile(&object::File::parse(file.as_slice()).unwrap()).unwrap_err();

    assert!(matches!(error, CfiError::WrongMachine { .. }), "{error}");
}

#[test]
fn file_without_text_is_refused() {
    let mut file = elf(256, &[]);
    file[64 + 4] = 4; // the segment is readable only

    let error = compile(&object::File::parse(file.as_slice()).unwrap()).unwrap_err();

    assert!(matches!(error, CfiError::NoText), "{error}");
}

#[test]
fn text_beyond_two_gigabytes_is_refused() {
    for bytes in [MAX_TEXT_BYTES + 1, u64::MAX] {
        let file = elf(bytes, &[]);

        let error = compile(&object::File::parse(file.as_slice()).unwrap()).unwrap_err();

        assert!(matches!(error, CfiError::TextTooLarge { .. }), "{error}");
    }
}

#[test]
fn section_outside_the_file_is_counted() {
    let mut file = elf(256, &[(".eh_frame", &[])]);
    let section_header = file.len() - 2 * 64;
    file[section_header + 32..section_header + 40].copy_from_slice(&u64::MAX.to_le_bytes());

    let table = compile_bytes(&file);

    assert_eq!(table.rows, [row(0, cfa::NONE, 0, RBP_SAME)]);
    assert_eq!(table.skipped, Skipped { broken_sections: 1, ..Skipped::default() });
}

#[test]
fn compressed_section_that_claims_a_terabyte_is_counted() {
    let mut data = vec![1, 0, 0, 0, 0, 0, 0, 0]; // zlib
    data.extend((1u64 << 40).to_le_bytes());
    data.extend(8u64.to_le_bytes());
    let mut file = elf(256, &[(".debug_frame", &data)]);
    let section_header = file.len() - 2 * 64;
    file[section_header + 8 + 1] = 8; // SHF_COMPRESSED, bit 11

    let table = compile_bytes(&file);

    assert_eq!(table.skipped, Skipped { broken_sections: 1, ..Skipped::default() });
}

#[test]
fn section_that_ends_within_an_entry_keeps_what_came_before() {
    let mut section = eh_frame(cie(), vec![function(0, 64, &[]), function(64, 64, &[])]);
    section.truncate(section.len() - 8);

    let table = compile_bytes(&elf(256, &[(".eh_frame", &section)]));

    assert_eq!(table.rows, [row(0, cfa::RSP, 8, RBP_SAME), row(64, cfa::NONE, 0, RBP_SAME)]);
    assert_eq!(table.skipped, Skipped { broken_sections: 1, ..Skipped::default() });
}

#[test]
fn overlapping_functions_are_cut_and_counted() {
    let functions = vec![
        function(0, 100, &[]),
        function(40, 20, &[(0, CallFrameInstruction::CfaOffset(16))]),
        function(40, 200, &[(0, CallFrameInstruction::CfaOffset(24))]),
    ];

    let section = eh_frame(cie(), functions);
    let table = compile_bytes(&elf(256, &[(".eh_frame", &section)]));

    assert_eq!(
        table.rows,
        [
            row(0, cfa::RSP, 8, RBP_SAME),
            row(40, cfa::RSP, 16, RBP_SAME),
            row(60, cfa::NONE, 0, RBP_SAME),
        ]
    );
    assert_eq!(table.skipped, Skipped { overlapping_fdes: 2, ..Skipped::default() });
}

/// A CIE inside the instructions of another one is no entry, however often FDEs name it.
#[test]
fn function_that_names_the_middle_of_an_entry_is_broken() {
    let mut section = eh_frame(cie(), vec![function(0, 64, &[])]);
    let cie_bytes = 4 + u32::from_le_bytes(*section.first_chunk().unwrap()) as usize;
    let pointer = u32::from_le_bytes(*section[cie_bytes + 4..].first_chunk().unwrap());
    section[cie_bytes + 4..cie_bytes + 8].copy_from_slice(&(pointer - 4).to_le_bytes());

    let table = compile_bytes(&elf(256, &[(".eh_frame", &section)]));

    assert_eq!(table.skipped, Skipped { broken_fdes: 1, ..Skipped::default() });
}

/// One function of a random layout: start, length, and the CFA offset that tells it apart.
fn functions() -> impl Strategy<Value = Vec<(u64, u32, i32)>> {
    prop::collection::vec((0u64..2000, 1u32..300, 1i32..1000), 0..20)
}

/// The row at `pc`: from the function that starts last at or before it, the first of equals.
fn slow_lookup(functions: &[(u64, u32, i32)], pc: u64) -> Option<i32> {
    let starts = functions.iter().map(|function| function.0);
    let start = starts.filter(|start| *start <= pc).max()?;
    let (_, bytes, offset) = functions.iter().find(|function| function.0 == start)?;
    (pc < start + u64::from(*bytes)).then_some(offset * 8)
}

fn functions_with_offsets(layout: &[(u64, u32, i32)]) -> Vec<FrameDescriptionEntry> {
    let make = |(start, bytes, offset): &(u64, u32, i32)| {
        function(*start, *bytes, &[(0, CallFrameInstruction::CfaOffset(offset * 8))])
    };
    layout.iter().map(make).collect()
}

proptest! {
    #[test]
    fn lookup_agrees_with_a_linear_search(eh in functions(), debug in functions()) {
        let eh_section = eh_frame(cie(), functions_with_offsets(&eh));
        let debug_section = debug_frame(cie(), functions_with_offsets(&debug));
        let sections = [(".eh_frame", &eh_section[..]), (".debug_frame", &debug_section[..])];

        let table = compile_bytes(&elf(2345, &sections));

        for pc in 0..2345 {
            let offset = slow_lookup(&eh, pc).or_else(|| slow_lookup(&debug, pc));
            let expected =
                offset.map_or(GAP, |offset| row(0, cfa::RSP, offset as i16, RBP_SAME));
            let found = lookup(&table, Svma(TEXT + pc));
            prop_assert_eq!(Row { pc: 0, ..found }, expected, "pc {:#x}", pc);
        }
    }

    #[test]
    fn random_bytes_never_panic(section in prop::collection::vec(any::<u8>(), 0..2000)) {
        let sections = [(".eh_frame", &section[..]), (".debug_frame", &section[..])];

        let table = compile_bytes(&elf(4096, &sections));

        prop_assert_eq!(table.rows[0].pc, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Bytes of libc's section are overwritten; the table stays well formed.
    #[test]
    fn mutated_libc_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..2000),
        kept in 0.1f64..1.0,
    ) {
        let (mut section, address, text_bytes) = libc_frames();
        section.truncate((section.len() as f64 * kept) as usize);
        for (at, byte) in changes {
            let at = at.index(section.len());
            section[at] = byte;
        }
        let text = Text { base: Svma(0), bytes: text_bytes };
        let bases = BaseAddresses::default().set_eh_frame(address);
        let mut skipped = Skipped::default();

        let frames = EhFrame::new(&section, LittleEndian);
        let functions = compile_section(&frames, Format::EhFrame, &bases, text, &mut skipped);
        let rows = spans::flatten(&functions, text.bytes);

        prop_assert!(rows.is_sorted_by(|a, b| a.pc < b.pc));
        prop_assert!(rows.len() <= section.len());
        prop_assert!(rows.iter().all(|row| row.pc <= text_bytes));
    }
}

/// libc's `.eh_frame`, its address, and the end of the text.
fn libc_frames() -> (Vec<u8>, u64, u32) {
    let data = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    let elf = object::File::parse(data.as_slice()).unwrap();
    let section = elf.section_by_name(".eh_frame").unwrap();
    let text = Text::of(&elf).unwrap();
    (section.data().unwrap().to_vec(), section.address(), text.base.0 as u32 + text.bytes)
}
