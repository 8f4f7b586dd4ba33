//! ELF files made for the tests, and the tests that use them.

mod hostile;
mod oracle;
mod rules;

use gimli::write::{
    self, Address, CallFrameInstruction, CommonInformationEntry, EndianVec, FrameDescriptionEntry,
    FrameTable,
};
use gimli::{Encoding, X86_64};

use super::*;

/// Where the text of [`elf`] starts.
const TEXT: u64 = 0x40_1000;

/// Where `.eh_frame` of [`elf`] is.
const EH_FRAME: u64 = 0x50_0000;

/// A minimal ELF file with one executable segment and these sections.
fn elf(text_bytes: u64, sections: &[(&str, &[u8])]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const SECTION_HEADER: usize = 64;

    let mut names = vec![0];
    let mut contents: Vec<u8> = Vec::new();
    let mut headers = vec![[0; SECTION_HEADER]];
    let mut add = |name: &str, kind: u32, address: u64, data: &[u8]| {
        let mut header = [0; SECTION_HEADER];
        header[0..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[16..24].copy_from_slice(&address.to_le_bytes());
        let offset = (HEADER + PROGRAM_HEADER + contents.len()) as u64;
        header[24..32].copy_from_slice(&offset.to_le_bytes());
        names.extend(name.bytes().chain([0]));
        let data = if name == ".shstrtab" { &names } else { data };
        header[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
        contents.extend(data);
        headers.push(header);
    };
    for (name, data) in sections {
        add(name, 1, if *name == ".eh_frame" { EH_FRAME } else { 0 }, data);
    }
    add(".shstrtab", 3, 0, &[]);

    let section_headers = HEADER + PROGRAM_HEADER + contents.len();
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // EXEC, x86-64
    file.extend(TEXT.to_le_bytes());
    file.extend((HEADER as u64).to_le_bytes());
    file.extend((section_headers as u64).to_le_bytes());
    file.extend([0; 4]);
    for half in [HEADER, PROGRAM_HEADER, 1, SECTION_HEADER, headers.len(), headers.len() - 1] {
        file.extend((half as u16).to_le_bytes());
    }
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // LOAD, R+X
    for word in [0, TEXT, TEXT, 0, text_bytes, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(contents);
    file.extend(headers.into_iter().flatten());
    file
}

/// Compiles what [`elf`] made.
fn compile_bytes(file: &[u8]) -> Table {
    compile(&object::File::parse(file).unwrap()).unwrap()
}

/// How the CIEs are written.
const ENCODING: Encoding = Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 1 };

/// A CIE as GCC writes it: at entry, the CFA is `rsp + 8` and the return address at its foot.
fn cie() -> CommonInformationEntry {
    let mut cie = CommonInformationEntry::new(ENCODING, 1, -8, X86_64::RA);
    cie.add_instruction(CallFrameInstruction::Cfa(X86_64::RSP, 8));
    cie.add_instruction(CallFrameInstruction::Offset(X86_64::RA, -8));
    cie
}

/// A function `start` bytes into the text, with (offset, instruction) pairs.
fn function(
    start: u64,
    bytes: u32,
    program: &[(u32, CallFrameInstruction)],
) -> FrameDescriptionEntry {
    let mut fde = FrameDescriptionEntry::new(Address::Constant(TEXT + start), bytes);
    for (offset, instruction) in program {
        fde.add_instruction(*offset, instruction.clone());
    }
    fde
}

fn eh_frame(cie: CommonInformationEntry, functions: Vec<FrameDescriptionEntry>) -> Vec<u8> {
    let mut section = write::EhFrame(EndianVec::new(LittleEndian));
    table(cie, functions).write_eh_frame(&mut section).unwrap();
    section.0.into_vec()
}

fn debug_frame(cie: CommonInformationEntry, functions: Vec<FrameDescriptionEntry>) -> Vec<u8> {
    let mut section = write::DebugFrame(EndianVec::new(LittleEndian));
    table(cie, functions).write_debug_frame(&mut section).unwrap();
    section.0.into_vec()
}

fn table(cie: CommonInformationEntry, functions: Vec<FrameDescriptionEntry>) -> FrameTable {
    let mut table = FrameTable::default();
    let cie = table.add_cie(cie);
    for function in functions {
        table.add_fde(cie, function);
    }
    table
}

fn row(pc: u32, cfa_kind: u8, cfa_offset: i16, rbp_offset_by_8: i8) -> Row {
    Row { pc, cfa_offset, cfa_kind, rbp_offset_by_8 }
}
