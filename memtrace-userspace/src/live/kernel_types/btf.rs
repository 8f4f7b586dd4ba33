//! BTF, the kernel's description of its types: names, members, values; nothing else of it.
//!
//! Documentation/bpf/btf.rst describes the format:
//!
//! ```text
//!   | header: magic, lengths | types: 12 bytes each, members behind | strings |
//! ```

use std::ops::Range;

use super::KernelTypesError;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
const ENUMERATOR_BYTES: usize = 8;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;

/// How deep structures without a name are followed into each other.
const MAX_NESTING: u32 = 4;

/// The fixed part of a type, and where what follows it is in the section.
struct TypeHeader {
    name: u32,
    kind: u32,
    has_bit_fields: bool,
    tail: Range<usize>,
}

/// The type section of a kernel, and the names in it.
pub(super) struct Btf<'a> {
    types: &'a [u8],
    types_at: usize,
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Finds the sections in the bytes of `/sys/kernel/btf/vmlinux`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, KernelTypesError> {
        let malformed = |at| KernelTypesError::Malformed { at };
        if bytes.get(..2) != Some(&MAGIC.to_le_bytes()[..]) {
            return Err(malformed(0));
        }
        let header = |at| u32_at(bytes, at).map(|value| value as usize).ok_or(malformed(at));
        let (header_length, type_offset, type_length) = (header(4)?, header(8)?, header(12)?);
        let (string_offset, string_length) = (header(16)?, header(20)?);
        if header_length < HEADER_BYTES {
            return Err(malformed(4));
        }
        let section = |offset: usize, length: usize| {
            let start = header_length.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let types = section(type_offset, type_length).ok_or(malformed(8))?;
        let strings = section(string_offset, string_length).ok_or(malformed(16))?;
        Ok(Btf { types, types_at: header_length + type_offset, strings })
    }

    /// Calls `visit` with (structure, member, offset in bytes) for every member of every `struct`.
    ///
    /// The members of a structure without a name inside another are members of the outer one.
    pub(super) fn for_each_member(
        &self,
        mut visit: impl FnMut(&[u8], &[u8], u32),
    ) -> Result<(), KernelTypesError> {
        let types = self.index()?;
        for header in types.iter().filter(|header| header.kind == KIND_STRUCT && header.name != 0) {
            let structure = self.string(header.name);
            self.visit_members(&types, header, 0, 0, &mut |member, offset_bits| {
                visit(structure, member, offset_bits / 8);
            });
        }
        Ok(())
    }

    /// Whether an `enum` has a value of each of these names, in their order.
    pub(super) fn has_enumerators<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[bool; N], KernelTypesError> {
        let mut found = [false; N];
        let types = self.index()?;
        for header in types.iter().filter(|header| header.kind == KIND_ENUM) {
            let tail = self.types.get(header.tail.clone()).unwrap_or_default();
            for value in tail.chunks_exact(ENUMERATOR_BYTES) {
                let name = self.string(u32_at(value, 0).unwrap_or(0));
                if let Some(at) = names.iter().position(|wanted| wanted.as_bytes() == name) {
                    found[at] = true;
                }
            }
        }
        Ok(found)
    }

    fn visit_members(
        &self,
        types: &[TypeHeader],
        header: &TypeHeader,
        base_bits: u32,
        depth: u32,
        visit: &mut impl FnMut(&[u8], u32),
    ) {
        let tail = self.types.get(header.tail.clone()).unwrap_or_default();
        for member in tail.chunks_exact(MEMBER_BYTES) {
            let [name, type_id, offset] = [0, 4, 8].map(|at| u32_at(member, at).unwrap_or(0));
            let offset = if header.has_bit_fields { offset & 0x00ff_ffff } else { offset };
            let offset_bits = base_bits.wrapping_add(offset);
            if name != 0 {
                visit(self.string(name), offset_bits);
            } else if depth < MAX_NESTING
                // Ids count from 1; 0 is `void`.
                && let Some(inner) = types.get((type_id as usize).wrapping_sub(1))
                && (inner.kind == KIND_STRUCT || inner.kind == KIND_UNION)
            {
                self.visit_members(types, inner, offset_bits, depth + 1, visit);
            }
        }
    }

    /// The headers of all types, in the order of their ids.
    fn index(&self) -> Result<Vec<TypeHeader>, KernelTypesError> {
        let mut headers = Vec::new();
        let mut at = 0;
        while at < self.types.len() {
            let malformed = KernelTypesError::Malformed { at: self.types_at + at };
            let (Some(name), Some(info)) = (u32_at(self.types, at), u32_at(self.types, at + 4))
            else {
                return Err(malformed);
            };
            let (kind, length) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            at += TYPE_BYTES;
            let Some(tail_bytes) = tail_bytes(kind, length) else { return Err(malformed) };
            let tail = at..at + tail_bytes;
            if self.types.get(tail.clone()).is_none() {
                return Err(malformed);
            }
            at = tail.end;
            headers.push(TypeHeader { name, kind, has_bit_fields: info >> 31 == 1, tail });
        }
        Ok(headers)
    }

    /// The string at `offset`, without its zero; empty if there is none.
    fn string(&self, offset: u32) -> &'a [u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        tail.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// How many bytes follow a type of this kind, or `None` if the kind is unknown.
fn tail_bytes(kind: u32, length: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,                         // INT, VAR, DECL_TAG
        3 => 12,                                  // ARRAY
        4 | 5 | 15 | 19 => length * MEMBER_BYTES, // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => length * ENUMERATOR_BYTES,      // ENUM, FUNC_PROTO
        2 | 7..=12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        _ => return None,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pointer type, one `struct` with the given members and bit offsets, and one `enum`.
    pub(in super::super) fn btf(
        structure: &str,
        members: &[(&str, u32)],
        enumerators: &[&str],
    ) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut intern = |text: &str| {
            let offset = strings.len() as u32;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            offset
        };
        let mut words = vec![0, 2 << 24, 0]; // PTR
        words.extend([intern(structure), KIND_STRUCT << 24 | members.len() as u32, 64]);
        for (name, offset_bits) in members {
            words.extend([intern(name), 1, *offset_bits]);
        }
        words.extend([intern("values"), KIND_ENUM << 24 | enumerators.len() as u32, 4]);
        for name in enumerators {
            words.extend([intern(name), 7]);
        }
        let types: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_with_their_offsets_in_bytes() {
        let bytes = btf("uprobe_task", &[("state", 0), ("return_instances", 64)], &[]);

        let mut members = Vec::new();
        let result = Btf::parse(&bytes).and_then(|btf| {
            btf.for_each_member(|structure, member, offset| {
                members.push((structure.to_vec(), member.to_vec(), offset));
            })
        });

        assert_eq!(result, Ok(()));
        let name = b"uprobe_task".to_vec();
        assert_eq!(
            members,
            [(name.clone(), b"state".to_vec(), 0), (name, b"return_instances".to_vec(), 8)]
        );
    }

    #[test]
    fn members_of_a_nameless_structure_belong_to_the_outer_one() {
        // Type 2 is `struct mm_struct { struct { … type 2 itself … } }`: bounded, not endless.
        let bytes = btf("mm_struct", &[("", 64), ("uprobes_state", 128)], &[]);
        let nameless = bytes.len() - "\0mm_struct\0\0uprobes_state\0values\0".len() - 12 - 24;
        let mut nested = bytes.clone();
        nested[nameless..nameless + 8].copy_from_slice(&[0, 0, 0, 0, 2, 0, 0, 0]);

        let mut offsets = Vec::new();
        let result = Btf::parse(&nested).and_then(|btf| {
            btf.for_each_member(|_, member, offset| offsets.push((member.to_vec(), offset)))
        });

        assert_eq!(result, Ok(()));
        let found: Vec<u32> = offsets.iter().map(|(_, offset)| *offset).collect();
        assert_eq!(found, [48, 40, 32, 24, 16]);
    }

    #[test]
    fn enumerators_are_found_by_name() {
        let bytes = btf("task_struct", &[("BPF_FUNC_loop", 0)], &["BPF_FUNC_x", "BPF_FUNC_y"]);

        let found = Btf::parse(&bytes)
            .and_then(|btf| btf.has_enumerators(["BPF_FUNC_y", "BPF_FUNC_loop", "values"]));

        assert_eq!(found, Ok([true, false, false]));
    }
}
