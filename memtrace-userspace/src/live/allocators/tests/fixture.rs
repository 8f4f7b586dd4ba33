//! Builds small ELF files.
//!
//! ```text
//!   0x000 header | 0x040 PT_LOAD | 0x080 code … | symbols, strings, relocations | section headers
//!         └──────────── one executable segment, at LOAD_BIAS ───────────┘
//! ```

/// Where file offset 0 is loaded.
pub(super) const LOAD_BIAS: u64 = 0x40_0000;

/// Address of the word through which the first PLT stub jumps.
const GOT: u64 = 0x80_0000;

const CODE_OFFSET: u64 = 0x80;

pub(super) struct FixtureSymbol {
    pub(super) name: &'static str,
    pub(super) kind: u8,
    pub(super) section: u16,
    pub(super) svma: u64,
    pub(super) size: u64,
}

impl FixtureSymbol {
    pub(super) fn function(name: &'static str, svma: u64, size: u64) -> FixtureSymbol {
        FixtureSymbol { name, kind: 2, section: 1, svma, size }
    }
}

pub(super) struct Fixture {
    pub(super) symbols: Vec<FixtureSymbol>,
    pub(super) dynamic_symbols: Vec<FixtureSymbol>,
    pub(super) soname: Option<&'static str>,
    pub(super) segment_flags: u32,
    code: Vec<u8>,
    /// (address of the word, index of the symbol in `.dynsym`)
    slots: Vec<(u64, u64)>,
}

impl Default for Fixture {
    fn default() -> Fixture {
        Fixture {
            symbols: Vec::new(),
            dynamic_symbols: Vec::new(),
            soname: None,
            segment_flags: 5,
            code: Vec::new(),
            slots: Vec::new(),
        }
    }
}

impl Fixture {
    /// Adds code and returns its address.
    pub(super) fn code(&mut self, code: &[u8]) -> u64 {
        self.code.resize(self.code.len().next_multiple_of(16), 0xcc);
        let svma = LOAD_BIAS + CODE_OFFSET + self.code.len() as u64;
        self.code.extend(code);
        svma
    }

    pub(super) fn function(&mut self, name: &'static str, code: &[u8]) -> u64 {
        let svma = self.code(code);
        self.symbols.push(FixtureSymbol::function(name, svma, code.len() as u64));
        svma
    }

    pub(super) fn dynamic_function(&mut self, name: &'static str, code: &[u8]) -> u64 {
        let svma = self.code(code);
        self.dynamic_symbols.push(FixtureSymbol::function(name, svma, code.len() as u64));
        svma
    }

    /// A function that is `head`, then a call (`e8`) of or a jump (`e9`) to `to`.
    pub(super) fn function_calling(
        &mut self,
        name: &'static str,
        head: &[u8],
        opcode: u8,
        to: u64,
    ) -> u64 {
        let next = self.code(&[]) + head.len() as u64 + 5;
        let distance = to.wrapping_sub(next) as u32;
        self.function(name, &[head, &[opcode], &distance.to_le_bytes()].concat())
    }

    pub(super) fn imported(&mut self, name: &'static str) {
        self.dynamic_symbols
            .push(FixtureSymbol { section: 0, ..FixtureSymbol::function(name, 0, 0) });
    }

    /// A PLT stub, `endbr64; jmp [rip + slot]`, for a symbol that is imported if need be.
    pub(super) fn plt(&mut self, name: &'static str) -> u64 {
        if !self.dynamic_symbols.iter().any(|symbol| symbol.name == name) {
            self.imported(name);
        }
        let index = self.dynamic_symbols.iter().position(|symbol| symbol.name == name).unwrap();
        let slot = GOT + 8 * self.slots.len() as u64;
        self.slots.push((slot, index as u64 + 1));
        let stub = self.code(&[]);
        let distance = slot.wrapping_sub(stub + 10) as u32;
        let jump = [&[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25], &distance.to_le_bytes()[..]].concat();
        self.code(&jump)
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let mut file = vec![0; CODE_OFFSET as usize];
        file.extend(&self.code);
        let mut sections = vec![Section::default()];
        sections.push(Section { kind: 1, flags: 6, ..add(&mut file, &[]) });

        let (symbols, strings) = symbol_table(&self.symbols);
        sections.push(Section { kind: 2, link: 3, entry: 24, ..add(&mut file, &symbols) });
        sections.push(Section { kind: 3, ..add(&mut file, &strings) });
        let (symbols, mut strings) = symbol_table(&self.dynamic_symbols);
        let soname_at = strings.len() as u64;
        strings.extend(self.soname.unwrap_or_default().as_bytes());
        strings.push(0);
        sections.push(Section { kind: 11, link: 5, entry: 24, ..add(&mut file, &symbols) });
        sections.push(Section { kind: 3, ..add(&mut file, &strings) });
        let rela: Vec<u8> = self
            .slots
            .iter()
            .flat_map(|(slot, symbol)| words(&[*slot, symbol << 32 | 7, 0]))
            .collect();
        sections.push(Section { kind: 4, link: 4, entry: 24, ..add(&mut file, &rela) });
        let dynamic = match self.soname {
            Some(_) => words(&[14, soname_at, 0, 0]),
            None => words(&[0, 0]),
        };
        sections.push(Section { kind: 6, link: 5, entry: 16, ..add(&mut file, &dynamic) });
        sections.push(Section { kind: 3, ..add(&mut file, &[0]) });

        let segment_end = file.len() as u64;
        let section_headers = file.len().next_multiple_of(8);
        file.resize(section_headers, 0);
        let count = sections.len() as u16;
        file.extend(sections.iter().flat_map(Section::header));

        let mut head = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        head.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        head.extend(words(&[0, 64, section_headers as u64]));
        head.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0]);
        head.extend(count.to_le_bytes());
        head.extend((count - 1).to_le_bytes());
        head.extend(1u32.to_le_bytes());
        head.extend(self.segment_flags.to_le_bytes());
        head.extend(words(&[0, LOAD_BIAS, LOAD_BIAS, segment_end, segment_end, 0x1000]));
        file[..head.len()].copy_from_slice(&head);
        file
    }
}

#[derive(Default)]
struct Section {
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
    entry: u64,
}

impl Section {
    fn header(&self) -> Vec<u8> {
        let mut header = [0u32.to_le_bytes(), self.kind.to_le_bytes()].concat();
        header.extend(words(&[self.flags, LOAD_BIAS + self.offset, self.offset, self.size]));
        header.extend([self.link.to_le_bytes(), 0u32.to_le_bytes()].concat());
        header.extend(words(&[8, self.entry]));
        header
    }
}

fn add(file: &mut Vec<u8>, contents: &[u8]) -> Section {
    file.resize(file.len().next_multiple_of(8), 0);
    let offset = file.len() as u64;
    file.extend(contents);
    Section { offset, size: contents.len() as u64, ..Section::default() }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn symbol_table(symbols: &[FixtureSymbol]) -> (Vec<u8>, Vec<u8>) {
    let mut table = vec![0; 24];
    let mut strings = vec![0];
    for FixtureSymbol { name, kind, section, svma, size } in symbols {
        table.extend((strings.len() as u32).to_le_bytes());
        table.extend([0x10 | kind, 0]);
        table.extend(section.to_le_bytes());
        table.extend(words(&[*svma, *size]));
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    (table, strings)
}
