//! Takes the debug information out of an object and leaves the BTF.
//!
//! bpf-linker makes BTF, which the kernel wants, out of DWARF, which nothing reads afterwards and
//! which is most of the object. GNU's `objcopy` does not know BPF; LLVM's is not always there.

use anyhow::{Context as _, Result};
use object::{
    build::elf::{Builder, SectionData, SectionId},
    elf,
};

/// The object without its `.debug_*` sections and what refers to them.
pub(super) fn strip_debug(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the object is no ELF file")?;
    let debug: Vec<SectionId> = builder
        .sections
        .iter()
        .filter(|section| section.name.as_slice().starts_with(b".debug_"))
        .map(|section| section.id())
        .collect();
    for section in &mut builder.sections {
        // Relocations name the section that they change in `sh_info`.
        let changes_debug = section.sh_info_section.is_some_and(|target| debug.contains(&target));
        section.delete = changes_debug || debug.contains(&section.id());
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table; the builder wants two.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("the object cannot be written without debug information")?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use object::Endianness;

    use super::*;

    fn add(builder: &mut Builder<'static>, name: &'static str, content: &'static str) {
        let section = builder.sections.add();
        section.name = name.as_bytes().into();
        section.sh_type = elf::SHT_PROGBITS;
        section.sh_addralign = 1;
        section.data = SectionData::Data(content.as_bytes().into());
    }

    #[test]
    fn debug_sections_go_and_btf_stays() {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        add(&mut builder, "uprobe", "code");
        add(&mut builder, ".debug_info", "names");
        add(&mut builder, ".BTF", "types");
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = elf::SHT_STRTAB;
        names.data = SectionData::SectionString;
        let mut object = Vec::new();
        builder.write(&mut object).expect("a valid object");

        let stripped = strip_debug(&object).expect("a valid object");

        let stripped = Builder::read(stripped.as_slice()).expect("a valid object");
        let names: Vec<_> =
            stripped.sections.iter().map(|section| section.name.as_slice()).collect();
        assert_eq!(names, [b"uprobe".as_slice(), b".BTF", b".shstrtab"]);
    }
}
