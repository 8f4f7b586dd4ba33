//! Attaching to processes that match a selection while tracing goes on.
//!
//! A service that is restarted, and a worker that somebody else starts, are new processes. They
//! are looked for in `/proc`, once a second, and attached to like those that tracing began with:
//! what they did before is not seen, and said to be so.

use std::collections::HashMap;

use super::process::{self, Identity};
use super::selection::{self, Selection};
use super::tracer::{Tracer, TracerError};
use crate::record::Pid;

/// How often a process is tried: one that has just begun may not have loaded its allocator yet.
const ATTEMPTS: u32 = 3;

/// Processes that were not to be attached to, and how often that was tried.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<Identity, u32>);

impl Tracer {
    /// Attaches to whatever matches and is not traced yet.
    pub fn attach_to_matching(&mut self, selection: &Selection) -> Result<(), TracerError> {
        let mut found = match selection::find(selection) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("cannot look for processes: {error}");
                return Ok(());
            }
        };
        let mut refusals = std::mem::take(&mut self.refusals).0;
        let mut current = HashMap::new();
        found.retain(|candidate| !self.knows_process(candidate.pid));
        for candidate in found {
            let Ok(info) = process::inspect(candidate.pid) else { continue };
            let attempts = refusals.remove(&info.identity).unwrap_or(0);
            let attached = match attempts {
                ATTEMPTS.. => None,
                _ => Some(self.attach(candidate.pid)),
            };
            let attempts = match attached {
                None => attempts,
                Some(Ok(_)) => {
                    tracing::info!("attached to {}, which matches", candidate.pid.0);
                    continue;
                }
                Some(Err(error)) if error.concerns_one_process() => {
                    tracing::info!("left out: {error}");
                    attempts + 1
                }
                Some(Err(error)) => return Err(error),
            };
            current.insert(info.identity, attempts);
        }
        // Those that have ended are forgotten here.
        self.refusals = Refusals(current);
        Ok(())
    }

    fn knows_process(&self, pid: Pid) -> bool {
        self.processes.contains_key(&pid)
            || self.children.contains_key(&pid)
            || self.expected.contains(&pid)
    }
}
