//! The few things that the search for allocators asks of an ELF file.

use std::collections::HashMap;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl};
use memtrace_common::addr::{FileOffset, Svma};
use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader as _, Sym as _};
use object::{Object as _, ReadRef, RelocationTarget};

use super::{AllocatorsError, MAX_FUNCTION_BYTES};

const LE: LittleEndian = LittleEndian;

/// The longest PLT stub: `endbr64; bnd jmp [rip + x]`, padded.
const PLT_STUB_BYTES: u64 = 16;

/// A parsed x86-64 ELF file.
pub(super) struct Elf<'data, R: ReadRef<'data>> {
    bytes: R,
    file: ElfFile64<'data, LittleEndian, R>,
}

/// A symbol that the file defines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol<'data> {
    /// Its name, without the version.
    pub(super) name: &'data str,
    pub(super) kind: SymbolType,
    pub(super) svma: Svma,
    pub(super) size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SymbolType {
    Function,
    IndirectFunction,
    Other,
}

/// What the dynamic linker will store in a word of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot<'data> {
    /// The address of the symbol with this name, which another file defines.
    Imported(&'data str),
    /// An address of this file, or of what another file puts in its place.
    Defined(Svma),
}

impl<'data, R: ReadRef<'data>> Elf<'data, R> {
    pub(super) fn parse(bytes: R) -> Result<Elf<'data, R>, AllocatorsError> {
        let not_elf = |reason: &str| AllocatorsError::NotElf { reason: reason.to_owned() };
        let ident =
            bytes.read_bytes_at(0, 20).map_err(|()| not_elf("shorter than an ELF header"))?;
        if ident.get(..4) != Some(&elf::ELFMAG[..]) {
            return Err(not_elf("no ELF magic number"));
        }
        // `e_machine` is at byte 18 in both classes; both fields are read before the parser,
        // which knows one class only.
        let class = if ident[4] == elf::ELFCLASS64.0 { 64 } else { 32 };
        let machine = u16::from_le_bytes([ident[18], ident[19]]);
        if class != 64 || machine != elf::EM_X86_64.0 {
            return Err(AllocatorsError::ForeignMachine { machine, class });
        }
        let file = ElfFile64::parse(bytes).map_err(|error| not_elf(&error.to_string()))?;
        Ok(Elf { bytes, file })
    }

    /// The defined symbols of `.symtab` and `.dynsym`, which may repeat each other.
    pub(super) fn defined_symbols(&self) -> impl Iterator<Item = Symbol<'data>> {
        let tables = [self.file.elf_symbol_table(), self.file.elf_dynamic_symbol_table()];
        tables.into_iter().flat_map(|table| {
            table.iter().filter_map(|symbol| {
                if symbol.st_shndx(LE) == elf::SHN_UNDEF {
                    return None;
                }
                let name = table.symbol_name(LE, symbol).ok()?;
                // In `.symtab` a version is part of the name: `memalign@GLIBC_2.2.5`.
                let name = std::str::from_utf8(name).ok()?.split('@').next()?;
                let kind = match symbol.st_type() {
                    elf::STT_FUNC | elf::STT_NOTYPE => SymbolType::Function,
                    elf::STT_GNU_IFUNC => SymbolType::IndirectFunction,
                    _ => SymbolType::Other,
                };
                let svma = Svma(symbol.st_value(LE));
                Some(Symbol { name, kind, svma, size: symbol.st_size(LE) })
            })
        })
    }

    /// Where in the file the code `[svma, svma + size)` is, if it is code and in the file.
    ///
    /// Asks the segments, which the kernel goes by, and not the sections.
    pub(super) fn code_offset(&self, svma: Svma, size: u64) -> Option<FileOffset> {
        if size > MAX_FUNCTION_BYTES {
            return None;
        }
        let segment = self.file.elf_program_headers().iter().find(|segment| {
            segment.p_type(LE) == elf::PT_LOAD
                && segment.p_flags(LE).contains(elf::PF_X)
                && svma.0.checked_sub(segment.p_vaddr(LE)).is_some_and(|from_start| {
                    from_start.checked_add(size).is_some_and(|end| end <= segment.p_filesz(LE))
                })
        })?;
        let from_start = svma.0.checked_sub(segment.p_vaddr(LE))?;
        let offset = segment.p_offset(LE).checked_add(from_start)?;
        let end = offset.checked_add(size)?;
        (end <= self.bytes.len().ok()?).then_some(FileOffset(offset))
    }

    /// The code at `svma`, `size` bytes or as many as the file has; empty if there is none.
    pub(super) fn code(&self, svma: Svma, size: u64) -> &'data [u8] {
        self.code_offset(svma, 1)
            .and_then(|offset| {
                let rest = self.bytes.len().ok()?.checked_sub(offset.0)?;
                self.bytes.read_bytes_at(offset.0, size.min(rest)).ok()
            })
            .unwrap_or_default()
    }

    /// Whether a `call` (`e8`) or a `jmp` (`e9`) with a distance leads to exactly this address.
    ///
    /// Looks at every byte and not at instructions, which only a function's start would tell: four
    /// bytes that agree by chance are one in four thousand million.
    pub(super) fn has_call_of(&self, svma: Svma) -> bool {
        self.file
            .elf_program_headers()
            .iter()
            .filter(|segment| {
                segment.p_type(LE) == elf::PT_LOAD && segment.p_flags(LE).contains(elf::PF_X)
            })
            .any(|segment| {
                let code = segment.data(LE, self.bytes).unwrap_or_default();
                let start = segment.p_vaddr(LE);
                code.windows(5).enumerate().any(|(at, bytes)| match *bytes {
                    [0xe8 | 0xe9, a, b, c, d] => {
                        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
                        let next = start.wrapping_add(at as u64 + 5);
                        next.wrapping_add_signed(distance) == svma.0
                    }
                    _ => false,
                })
            })
    }

    /// What the words will hold that the dynamic linker fills: the GOT, by address.
    pub(super) fn slots(&self) -> HashMap<Svma, Slot<'data>> {
        let Some(relocations) = self.file.dynamic_relocations() else { return HashMap::new() };
        relocations
            .filter_map(|(svma, relocation)| {
                let slot = match relocation.target() {
                    RelocationTarget::Symbol(index) => {
                        let table = self.file.elf_dynamic_symbol_table();
                        let symbol = table.symbol(index).ok()?;
                        if symbol.st_shndx(LE) == elf::SHN_UNDEF {
                            let name = table.symbol_name(LE, symbol).ok()?;
                            Slot::Imported(std::str::from_utf8(name).ok()?)
                        } else {
                            Slot::Defined(Svma(symbol.st_value(LE)))
                        }
                    }
                    RelocationTarget::Absolute => {
                        Slot::Defined(Svma(u64::try_from(relocation.addend()).ok()?))
                    }
                    _ => return None,
                };
                Some((Svma(svma), slot))
            })
            .collect()
    }

    /// The word through which the PLT stub at `stub` jumps, if there is a stub.
    pub(super) fn plt_slot(&self, stub: Svma) -> Option<Svma> {
        let code = self.code(stub, PLT_STUB_BYTES);
        let mut decoder = Decoder::with_ip(64, code, stub.0, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        if instruction.code() == Code::Endbr64 {
            instruction = decoder.decode();
        }
        let jumps = instruction.flow_control() == FlowControl::IndirectBranch
            && instruction.is_ip_rel_memory_operand();
        jumps.then(|| Svma(instruction.ip_rel_memory_address()))
    }

    /// Whether this is glibc's dynamic linker. musl's is its C library and does not count.
    pub(super) fn is_dynamic_linker(&self) -> bool {
        let Ok(dynamic) = self.file.elf_dynamic_table() else { return false };
        dynamic.iter().any(|entry| {
            entry.tag == elf::DT_SONAME
                && dynamic.string(entry).is_ok_and(|soname| soname.starts_with(b"ld-linux"))
        })
    }

    /// Whether it is a Go program: the linker of Go writes this section into every one.
    pub(super) fn is_go(&self) -> bool {
        self.file.elf_section_table().section_by_name(LE, b".go.buildinfo").is_some()
    }
}
