//! ELF files: what they say of themselves, and such as are not as they should be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Writes a static 32-bit x86 program that waits for signals, for ever.
///
/// ```text
///   0    ELF header, 52 bytes
///   52   program header, 32 bytes: all of the file, read and execute, at 0x08048000
///   84   mov eax, 29 (pause) · int 0x80 · jmp back
/// ```
pub fn write_32_bit_program(path: &Path) -> Result<()> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let code: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let size = HEADERS + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, 2); // e_type: ET_EXEC
    half(&mut file, 3); // e_machine: EM_386
    word(&mut file, 1); // e_version
    word(&mut file, BASE + HEADERS); // e_entry
    word(&mut file, 52); // e_phoff
    word(&mut file, 0); // e_shoff
    word(&mut file, 0); // e_flags
    for value in [52, 32, 1, 0, 0, 0] {
        half(&mut file, value); // e_ehsize, e_phentsize, e_phnum, no sections
    }
    // p_type: PT_LOAD, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags: R+X, p_align
    for value in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        word(&mut file, value);
    }
    file.extend(code);
    fs::write(path, file).with_context(|| format!("write {}", path.display()))?;
    make_executable(path)
}

/// Copies an executable and overwrites the sections of these names with `0xff`.
pub fn copy_with_broken_sections(from: &Path, to: &Path, sections: &[&str]) -> Result<()> {
    let mut file = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    for name in sections {
        let (offset, size) = find_section(&file, name)
            .with_context(|| format!("{} has no section {name}", from.display()))?;
        let bytes = file.get_mut(offset..offset + size).context("a section ends in the file")?;
        bytes.fill(0xff);
    }
    fs::write(to, file).with_context(|| format!("write {}", to.display()))?;
    make_executable(to)
}

/// The build id of a file, in hex.
///
/// The note is three words (length of the name, of the id, kind), the name `GNU\0`, and the id.
pub fn build_id(path: &Path) -> Result<String> {
    let file = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let (offset, size) = find_section(&file, ".note.gnu.build-id")
        .with_context(|| format!("{} has no build id", path.display()))?;
    let id = file.get(offset + 16..offset + size).context("a note ends in the file")?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a file executable for everybody.
pub fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

/// Offset and size of a section of a 64-bit little-endian file that a compiler has just made.
fn find_section(file: &[u8], name: &str) -> Result<(usize, usize)> {
    let headers = number(file, 0x28, 8)?;
    let header_size = number(file, 0x3a, 2)?;
    let count = number(file, 0x3c, 2)?;
    let names_index = number(file, 0x3e, 2)?;
    let names = number(file, headers + names_index * header_size + 0x18, 8)?;
    for index in 0..count {
        let header = headers + index * header_size;
        let start = names + number(file, header, 4)?;
        let text = file.get(start..).context("a section's name")?;
        let text = text.split(|byte| *byte == 0).next().context("a section's name")?;
        if text == name.as_bytes() {
            return Ok((number(file, header + 0x18, 8)?, number(file, header + 0x20, 8)?));
        }
    }
    bail!("none of {count} sections has this name")
}

fn number(file: &[u8], offset: usize, size: usize) -> Result<usize> {
    let bytes = file.get(offset..offset + size).context("the file is too short")?;
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(bytes);
    usize::try_from(u64::from_le_bytes(wide)).context("the number is too large")
}
