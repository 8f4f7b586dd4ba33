//! Records in, snapshots out.

pub mod snapshot;
