//! Address space that a process had reserved before it was attached to.
//!
//! Whatever becomes accessible in it later is memory of whoever asks for that, so the pipeline must
//! know where it is. It is read when the kernel half tells of this process already: what changes
//! meanwhile comes as an event, and is applied to it.

use super::process::{self, Mapping};
use super::tracer::{Tracer, TracerError};
use crate::record::{Alignment, Pid, Record, Tid, Time, WireStackId};

impl Tracer {
    /// Tells of the mappings without access.
    pub(super) fn note_reserved(&mut self, pid: Pid, now: Time) -> Result<(), TracerError> {
        let mappings = process::mappings(pid)?;
        self.out.extend(mappings.iter().filter(|mapping| is_reserved(mapping)).map(|mapping| {
            Record::Held {
                born: now,
                pid,
                tid: Tid(pid.0),
                api: None,
                alignment: Alignment::NONE,
                start: mapping.start,
                length: mapping.size_bytes(),
                stack: WireStackId(0),
            }
        }));
        Ok(())
    }
}

fn is_reserved(mapping: &Mapping) -> bool {
    let access = mapping.access;
    !(access.read || access.write || access.execute)
}
