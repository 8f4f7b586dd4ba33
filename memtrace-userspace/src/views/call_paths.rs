//! The call paths of sites, learned while events come: a site's frames may come after its events.

use std::sync::Arc;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use crate::pipeline::snapshot::Stack;
use crate::pipeline::{Pipeline, SiteId};
use crate::record::Record;

/// So many sites without frames are looked at whenever a stack arrives; all when time goes by.
const AWAITED_AT_ONCE: usize = 64;

/// What is known of the sites that were met.
#[derive(Default)]
pub(super) struct CallPaths {
    /// By number.
    known: Vec<Option<(Api, Option<Arc<Stack>>)>>,
    /// The sites whose frames have not come yet.
    awaited: Vec<SiteId>,
}

impl CallPaths {
    /// Learns from a record, which the pipeline has applied.
    pub(super) fn event(&mut self, record: &Record, pipeline: &Pipeline) {
        match record {
            Record::Stack { .. } if self.awaited.len() <= AWAITED_AT_ONCE => {
                self.find_awaited(pipeline);
            }
            Record::Tick { .. } | Record::End { .. } => self.find_awaited(pipeline),
            _ => {}
        }
    }

    /// The API of a site, which may be new.
    pub(super) fn meet(&mut self, id: SiteId, pipeline: &Pipeline) -> Api {
        if self.known.len() <= id.index() {
            self.known.resize(id.index() + 1, None);
        }
        let known = &mut self.known[id.index()];
        if let Some((api, _)) = known {
            return *api;
        }
        let (api, stack) = pipeline.known_call_path(id);
        if stack.is_none() {
            self.awaited.push(id);
        }
        *known = Some((api, stack.map(Arc::clone)));
        api
    }

    /// Looks whether frames have come.
    pub(super) fn find_awaited(&mut self, pipeline: &Pipeline) {
        let known = &mut self.known;
        self.awaited.retain(|&id| {
            let (api, stack) = pipeline.known_call_path(id);
            let stack = stack.map(Arc::clone);
            let is_awaited = stack.is_none();
            known[id.index()] = Some((api, stack));
            is_awaited
        });
    }

    /// Call path and API of each site, by number.
    pub(super) fn finish(self) -> Vec<(Arc<Stack>, Api)> {
        let missing = Arc::new(Stack { end: End::Missing, frames: Vec::new() });
        let call_path = |known: Option<(Api, Option<Arc<Stack>>)>| {
            // Nobody asks for one that was never met.
            let (api, stack) = known.unwrap_or((Api::Malloc, None));
            (stack.unwrap_or_else(|| Arc::clone(&missing)), api)
        };
        self.known.into_iter().map(call_path).collect()
    }
}
