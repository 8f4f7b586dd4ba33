//! Reports of a whole session: one file per format.

pub mod json;
pub mod lost;
pub mod text;
