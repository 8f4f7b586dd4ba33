//! JSON lists that are made while they are written, so that no list is ever in memory.

use serde::ser::{Serialize, Serializer};

/// A list, as often as it is asked for.
pub(in crate::views) struct List<F>(pub(in crate::views) F);

impl<F, I> Serialize for List<F>
where
    F: Fn() -> I,
    I: Iterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}
