//! Tables in JSON that other entries refer to by index.

use std::cell::RefCell;
use std::hash::Hash;

use rustc_hash::FxHashMap;
use serde::ser::{Serialize, Serializer};

/// What entries refer to, each once and in the order in which it was first needed.
///
/// The table is made while those entries are written, and so is written behind the last of them.
pub(in crate::views) struct Table<K, V>(RefCell<(FxHashMap<K, usize>, Vec<V>)>);

impl<K: Eq + Hash, V> Table<K, V> {
    pub(in crate::views) fn new() -> Table<K, V> {
        Table(RefCell::default())
    }

    /// Where the value of this key stands, counted from 0.
    pub(in crate::views) fn index(&self, key: K, value: impl FnOnce() -> V) -> usize {
        let (indices, values) = &mut *self.0.borrow_mut();
        *indices.entry(key).or_insert_with(|| {
            values.push(value());
            values.len() - 1
        })
    }
}

impl<K, V: Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0.borrow().1)
    }
}
