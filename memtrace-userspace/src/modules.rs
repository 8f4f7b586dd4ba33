//! Which file and offset an address of code lies in, as the mappings of a process change.
//!
//! In: the executable mappings that come and go. Out: for an address, what is mapped there now.
//! A mapping replaces what it overlaps, as `MAP_FIXED` does in the kernel; what sticks out stays.
//!
//! ```text
//!   before   |---- libfoo.so ----|
//!   insert         |- jit -|
//!   after    |-foo-|- jit -|-foo-|      the offsets of the right piece go on counting
//! ```
//!
//! `exec` starts with a new, empty table; `fork` clones the parent's. It knows no symbols and
//! opens no file.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};

use crate::record::Image;

/// An image in [`Images`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(u32);

impl ImageId {
    /// Its index in [`Images::all`].
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Every file that was seen mapped, each once.
#[derive(Clone, Debug, Default)]
pub struct Images<S> {
    all: Vec<Arc<Image>>,
    ids: HashMap<Arc<Image>, ImageId, S>,
    limit: u32,
}

impl<S: BuildHasher> Images<S> {
    /// An empty table for at most `limit` images.
    pub fn new(limit: u32, hasher: S) -> Images<S> {
        Images { all: Vec::new(), ids: HashMap::with_hasher(hasher), limit }
    }

    /// The id of `image`; `None` if it is new and the table is full.
    pub fn intern(&mut self, image: &Image) -> Option<ImageId> {
        if let Some(&id) = self.ids.get(image) {
            return Some(id);
        }
        let id = u32::try_from(self.all.len()).ok().filter(|&id| id < self.limit)?;
        let image = Arc::new(image.clone());
        self.all.push(Arc::clone(&image));
        self.ids.insert(image, ImageId(id));
        Some(ImageId(id))
    }

    /// All of them, in order of appearance.
    pub fn all(&self) -> &[Arc<Image>] {
        &self.all
    }
}

/// What an executable mapping shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file, or the vDSO, from this offset on.
    Image(ImageId, FileOffset),
    /// No file: code made at run time.
    Anonymous,
}

impl Backing {
    /// What the mapping shows `bytes` after its start. Wraps if the trace is absurd.
    fn skip(self, bytes: u64) -> Backing {
        match self {
            Backing::Image(image, offset) => {
                Backing::Image(image, FileOffset(offset.0.wrapping_add(bytes)))
            }
            Backing::Anonymous => Backing::Anonymous,
        }
    }
}

/// The executable mappings of one process.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// By first address; they do not overlap and none is empty.
    by_start: BTreeMap<Avma, Mapped>,
}

#[derive(Clone, Copy, Debug)]
struct Mapped {
    end: Avma,
    backing: Backing,
}

impl Modules {
    /// Maps `start..end`; what it overlaps is cut. An empty range changes nothing.
    pub fn insert(&mut self, start: Avma, end: Avma, backing: Backing) {
        if start >= end {
            return;
        }
        if let Some((&left, mapped)) = self.by_start.range_mut(..start).next_back()
            && mapped.end > start
        {
            let old = *mapped;
            mapped.end = start;
            self.insert_tail(left, old, end);
        }
        while let Some((&left, &old)) = self.by_start.range(start..end).next() {
            self.by_start.remove(&left);
            self.insert_tail(left, old, end);
        }
        self.by_start.insert(start, Mapped { end, backing });
    }

    /// Puts back what `old`, once at `left`, has from `cut` on.
    fn insert_tail(&mut self, left: Avma, old: Mapped, cut: Avma) {
        if old.end > cut {
            let backing = old.backing.skip(cut.0 - left.0);
            self.by_start.insert(cut, Mapped { end: old.end, backing });
        }
    }

    /// Unmaps the mapping that starts at `start`; tells whether there was one.
    pub fn remove(&mut self, start: Avma) -> bool {
        self.by_start.remove(&start).is_some()
    }

    /// What is mapped at `address`; `None` if nothing known is.
    pub fn locate(&self, address: Avma) -> Option<Backing> {
        let (start, mapped) = self.find(address)?;
        Some(mapped.backing.skip(address.0 - start.0))
    }

    /// The same for each of several addresses: quick where one lies in the mapping of the one before.
    pub fn locate_each(&self, addresses: &[Avma]) -> impl Iterator<Item = Option<Backing>> {
        let mut last: Option<(Avma, Mapped)> = None;
        addresses.iter().map(move |&address| {
            let same = last.filter(|(start, mapped)| (*start..mapped.end).contains(&address));
            last = same.or_else(|| self.find(address));
            last.map(|(start, mapped)| mapped.backing.skip(address.0 - start.0))
        })
    }

    /// The mapping that an address lies in, and where that starts.
    fn find(&self, address: Avma) -> Option<(Avma, Mapped)> {
        let (&start, &mapped) = self.by_start.range(..=address).next_back()?;
        (address < mapped.end).then_some((start, mapped))
    }

    /// Every mapping: its start, its end, and what it shows.
    pub fn all(&self) -> impl Iterator<Item = (Avma, Avma, Backing)> {
        self.by_start.iter().map(|(&start, mapped)| (start, mapped.end, mapped.backing))
    }

    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use proptest::prelude::*;

    use super::*;

    fn file(image: u32, offset: u64) -> Backing {
        Backing::Image(ImageId(image), FileOffset(offset))
    }

    #[test]
    fn insert_into_the_middle_cuts_the_old_mapping_in_two() {
        let mut modules = Modules::default();
        modules.insert(Avma(0x1000), Avma(0x5000), file(0, 0x100));

        modules.insert(Avma(0x2000), Avma(0x3000), Backing::Anonymous);

        assert_eq!(modules.locate(Avma(0xfff)), None);
        assert_eq!(modules.locate(Avma(0x1fff)), Some(file(0, 0x10ff)));
        assert_eq!(modules.locate(Avma(0x2000)), Some(Backing::Anonymous));
        assert_eq!(modules.locate(Avma(0x3000)), Some(file(0, 0x2100)));
        assert_eq!(modules.locate(Avma(0x5000)), None);
        assert_eq!(modules.len(), 3);
    }

    #[test]
    fn insert_of_an_empty_range_changes_nothing() {
        let mut modules = Modules::default();

        modules.insert(Avma(0x2000), Avma(0x2000), Backing::Anonymous);
        modules.insert(Avma(0x2000), Avma(0x1000), Backing::Anonymous);

        assert!(modules.is_empty());
    }

    #[test]
    fn remove_of_an_address_inside_a_mapping_is_refused() {
        let mut modules = Modules::default();
        modules.insert(Avma(0x1000), Avma(0x5000), file(0, 0));

        assert!(!modules.remove(Avma(0x2000)));
        assert!(modules.remove(Avma(0x1000)));
        assert_eq!(modules.locate(Avma(0x2000)), None);
    }

    #[test]
    fn images_refuse_a_new_one_when_full() {
        let mut images = Images::new(1, RandomState::new());

        assert_eq!(images.intern(&Image::Vdso), Some(ImageId(0)));
        assert_eq!(images.intern(&Image::Anonymous), None);
        assert_eq!(images.intern(&Image::Vdso), Some(ImageId(0)));
        assert_eq!(images.all().len(), 1);
    }

    proptest! {
        /// The twin keeps one entry for each byte.
        #[test]
        fn modules_equal_a_table_of_bytes(steps in prop::collection::vec(
            (0u64..40, 0u64..20, 0u32..4, 0u64..1000), 0..40)
        ) {
            let mut modules = Modules::default();
            let mut twin = [None; 64];

            for (start, length, image, offset) in steps {
                let end = start + length;
                let backing = if image == 3 { Backing::Anonymous } else { file(image, offset) };
                modules.insert(Avma(start), Avma(end), backing);
                for address in start..end {
                    twin[address as usize] = Some(backing.skip(address - start));
                }
            }

            for (address, expected) in twin.iter().enumerate() {
                prop_assert_eq!(modules.locate(Avma(address as u64)), *expected);
            }
            let there_and_back: Vec<u64> = (0..64).chain((0..64).rev()).collect();
            let addresses: Vec<Avma> = there_and_back.iter().map(|address| Avma(*address)).collect();
            let located: Vec<_> = modules.locate_each(&addresses).collect();
            let expected: Vec<_> = there_and_back.iter().map(|a| twin[*a as usize]).collect();
            prop_assert_eq!(located, expected);
        }
    }
}
