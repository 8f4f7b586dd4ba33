//! What was missed because its event was lost from a full ring.
//!
//! The kernel is asked once a second. What was so at the last look, and has had no event by the time
//! that the ring was seen empty since, will have none.

use super::process;
use super::tracer::{Tracer, TracerError};
use crate::record::Time;

impl Tracer {
    /// Ends processes whose event of their end was lost from a full ring.
    ///
    /// A process that had ended at the last sample is one: the ring has been empty since then.
    pub(super) fn end_what_was_lost(&mut self, was_drained: bool, time: Time) {
        let mut lost = Vec::new();
        for (pid, traced) in &mut self.processes {
            let had_ended = std::mem::replace(&mut traced.had_ended, traced.handle.has_ended());
            if had_ended && was_drained {
                lost.push(*pid);
            }
        }
        lost.sort();
        for pid in lost {
            tracing::debug!("process {} ended, and the event of it was lost", pid.0);
            self.exited(pid, time);
        }
    }

    /// Follows processes to programs whose beginning was lost from a full ring.
    ///
    /// As with their end: a program that had begun at the last sample is one.
    pub(super) fn notice_lost_programs(
        &mut self,
        was_drained: bool,
        time: Time,
    ) -> Result<(), TracerError> {
        let mut lost = Vec::new();
        for (pid, traced) in &mut self.processes {
            let other = process::program(*pid).filter(|program| *program != traced.program);
            let before = std::mem::replace(&mut traced.other_program, other);
            if was_drained && other.is_some() && other == before {
                lost.push(*pid);
            }
        }
        lost.sort();
        for pid in lost {
            self.executed(pid, time)?;
            tracing::info!("process {} runs a new program, and the event of it was lost", pid.0);
        }
        Ok(())
    }
}
