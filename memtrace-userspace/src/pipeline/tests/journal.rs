//! What each record is said to have changed.

use super::*;
use crate::pipeline::{Change, Posting, SiteId};

/// What the last of the records changed: API, first frame, change and bytes.
fn last_change(records: &[Record]) -> Vec<(Api, Option<u64>, Change, u64)> {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut postings = Vec::new();
    let start = [process(MAIN), thread(MAIN, MAIN), stack(1, 0x11), stack(2, 0x22)];
    for record in start.iter().chain(records) {
        pipeline.apply_with(record, &mut postings);
    }
    let frame = |site: SiteId| match pipeline.known_call_path(site) {
        (api, Some(stack)) => match stack.frames[0] {
            super::super::snapshot::Place::Unknown { address, .. } => (api, Some(address.0)),
            _ => panic!("no module was mapped"),
        },
        (api, None) => (api, None),
    };
    let shown = |&Posting { pid: _, site, thread: _, change, blocks: _, bytes }: &Posting| {
        let (api, frame) = frame(site);
        (api, frame, change, bytes)
    };
    postings.iter().map(shown).collect()
}

#[test]
fn allocation_and_release_are_of_the_stack_that_allocated() {
    let records = [alloc(1, MAIN, 0x10, 100, 1), free(2, MAIN, 0x10)];

    let acquired = (Api::Malloc, Some(0x11), Change::Acquire, 100);
    let released = (Api::Malloc, Some(0x11), Change::Release, 100);
    assert_eq!(last_change(&records[..1]), [acquired]);
    assert_eq!(last_change(&records), [released]);
}

#[test]
fn release_that_nobody_saw_stands_before_the_allocation_that_proves_it() {
    let records = [alloc(1, MAIN, 0x10, 100, 1), alloc(2, MAIN, 0x10, 50, 2)];

    let released = (Api::Malloc, Some(0x11), Change::Release, 100);
    let acquired = (Api::Malloc, Some(0x22), Change::Acquire, 50);
    assert_eq!(last_change(&records), [released, acquired]);
}

#[test]
fn realloc_that_fails_takes_its_release_back() {
    let records = [alloc(1, MAIN, 0x10, 100, 1), retire(2, MAIN, 0x10), restore(3, MAIN, 0x10)];

    let released = (Api::Malloc, Some(0x11), Change::Release, 100);
    let reclaimed = (Api::Malloc, Some(0x11), Change::Reclaim, 100);
    assert_eq!(last_change(&records[..2]), [released]);
    assert_eq!(last_change(&records), [reclaimed]);
}

#[test]
fn orphan_free_changes_nothing() {
    assert_eq!(last_change(&[alloc(1, MAIN, 0x10, 100, 1), free(2, MAIN, 0x20)]), []);
}

#[test]
fn stack_that_has_not_come_has_no_call_path() {
    let records = [alloc(1, MAIN, 0x10, 100, 9)];

    assert_eq!(last_change(&records), [(Api::Malloc, None, Change::Acquire, 100)]);
}
