//! Names of code that was made at run time.
//!
//! In: the addresses of such code that stacks go through, and the symbols that the process itself
//! gave. Out: a name for each address, in every snapshot.
//!
//! ```text
//!   stack with 0x7f10 ──→ awaited ──┐
//!   symbol 0x7f00..0x7f40 "f" ──────┴→ named: 0x7f10 = "f"
//!   stack with 0x7f24 ───────────────→ named: 0x7f24 = "f", at once
//!   symbol 0x7f20..0x7f60 "g" ──────→ from now on 0x7f20..0x7f60 is "g"; 0x7f24 stays "f"
//! ```
//!
//! An address keeps its first name: what stands there later is seen as the same place by
//! everybody who compares stacks. A symbol replaces those that it overlaps, for addresses that
//! come after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use memtrace_common::addr::Avma;

use super::limits::Limits;
use super::snapshot;
use crate::record::Pid;

/// What is known of code without a file.
#[derive(Debug)]
pub(super) struct JitNames {
    named: Arc<snapshot::JitNames>,
    awaited: BTreeSet<(Pid, Avma)>,
    symbols: BTreeMap<(Pid, Avma), Symbol>,
    /// Every symbol that was ever taken in counts, since addresses keep its name.
    symbols_seen: usize,
    symbol_limit: usize,
    address_limit: usize,
    symbols_beyond_limit: u64,
    addresses_beyond_limit: u64,
}

#[derive(Debug)]
struct Symbol {
    end: Avma,
    name: Arc<[u8]>,
}

impl JitNames {
    pub(super) fn new(limits: &Limits) -> JitNames {
        JitNames {
            named: Arc::default(),
            awaited: BTreeSet::new(),
            symbols: BTreeMap::new(),
            symbols_seen: 0,
            symbol_limit: limits.jit_symbols,
            address_limit: limits.jit_addresses,
            symbols_beyond_limit: 0,
            addresses_beyond_limit: 0,
        }
    }

    /// A stack goes through `address`, which is in no file.
    pub(super) fn saw(&mut self, pid: Pid, address: Avma) {
        let key = (pid, address);
        if self.named.contains_key(&key) || self.awaited.contains(&key) {
            return;
        }
        if self.named.len() + self.awaited.len() >= self.address_limit {
            self.addresses_beyond_limit += 1;
            return;
        }
        match self.covering(pid, address) {
            Some(name) => {
                Arc::make_mut(&mut self.named).insert(key, name);
            }
            None => {
                self.awaited.insert(key);
            }
        }
    }

    fn covering(&self, pid: Pid, address: Avma) -> Option<Arc<[u8]>> {
        let (&(of, _), symbol) = self.symbols.range(..=(pid, address)).next_back()?;
        (of == pid && address < symbol.end).then(|| Arc::clone(&symbol.name))
    }

    /// The process calls its code at `start` so.
    pub(super) fn symbol(&mut self, pid: Pid, start: Avma, size: u64, name: Vec<u8>) {
        if self.symbols_seen >= self.symbol_limit {
            self.symbols_beyond_limit += 1;
            return;
        }
        self.symbols_seen += 1;
        let end = Avma(start.0.saturating_add(size));
        let range = (pid, start)..(pid, end);
        if range.is_empty() {
            return;
        }
        let name: Arc<[u8]> = name.into();
        let newly: Vec<_> = self.awaited.range(range.clone()).copied().collect();
        if !newly.is_empty() {
            let named = Arc::make_mut(&mut self.named);
            for key in newly {
                self.awaited.remove(&key);
                named.insert(key, Arc::clone(&name));
            }
        }
        let before = self.symbols.range(..range.start).next_back();
        let overlapped: Vec<_> = before
            .into_iter()
            .chain(self.symbols.range(range))
            .filter(|((of, _), symbol)| *of == pid && symbol.end > start)
            .map(|(key, _)| *key)
            .collect();
        for key in overlapped {
            self.symbols.remove(&key);
        }
        self.symbols.insert((pid, start), Symbol { end, name });
    }

    /// The program of `pid` has ended: its code is gone, and what was named keeps its name.
    pub(super) fn forget(&mut self, pid: Pid) {
        let all = (pid, Avma(0))..=(pid, Avma(u64::MAX));
        let symbols: Vec<_> = self.symbols.range(all.clone()).map(|(key, _)| *key).collect();
        for key in symbols {
            self.symbols.remove(&key);
        }
        // No symbol will come for them any more.
        let awaited: Vec<_> = self.awaited.range(all).copied().collect();
        for key in awaited {
            self.awaited.remove(&key);
        }
    }

    /// Symbols from which another table learns the same names: one for each address, then those
    /// that code is still called by.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (Pid, Avma, u64, &[u8])> {
        let named = self.named.iter().map(|(&(pid, address), name)| (pid, address, 1, &**name));
        let current = self.symbols.iter().map(|(&(pid, start), symbol)| {
            (pid, start, symbol.end.0.saturating_sub(start.0), &*symbol.name)
        });
        named.chain(current)
    }

    /// The names so far; cheap.
    pub(super) fn named(&self) -> Arc<snapshot::JitNames> {
        Arc::clone(&self.named)
    }

    /// Symbols that found no room.
    pub(super) fn symbols_beyond_limit(&self) -> u64 {
        self.symbols_beyond_limit
    }

    /// Addresses that found no room, each time that a stack had one.
    pub(super) fn addresses_beyond_limit(&self) -> u64 {
        self.addresses_beyond_limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: Pid = Pid(7);

    fn names(names: &JitNames) -> Vec<(u64, &str)> {
        names
            .named
            .iter()
            .map(|((_, address), name)| (address.0, std::str::from_utf8(name).unwrap()))
            .collect()
    }

    fn empty() -> JitNames {
        JitNames::new(&Limits::default())
    }

    #[test]
    fn symbol_names_addresses_before_and_after_it() {
        let mut jit = empty();

        jit.saw(PID, Avma(0x10));
        jit.symbol(PID, Avma(0x10), 0x10, b"f".to_vec());
        jit.saw(PID, Avma(0x1f));
        jit.saw(PID, Avma(0x20));

        assert_eq!(names(&jit), [(0x10, "f"), (0x1f, "f")]);
    }

    #[test]
    fn address_keeps_its_name_when_its_code_is_replaced() {
        let mut jit = empty();
        jit.saw(PID, Avma(0x14));
        jit.symbol(PID, Avma(0x10), 0x10, b"f".to_vec());

        jit.symbol(PID, Avma(0x08), 0x10, b"g".to_vec());
        jit.saw(PID, Avma(0x14));
        jit.saw(PID, Avma(0x16));
        jit.saw(PID, Avma(0x1a));

        assert_eq!(names(&jit), [(0x14, "f"), (0x16, "g")]);
    }

    #[test]
    fn symbol_of_another_process_names_nothing() {
        let mut jit = empty();
        jit.saw(PID, Avma(0x10));

        jit.symbol(Pid(6), Avma(0x10), 0x10, b"f".to_vec());
        jit.symbol(Pid(8), Avma(0), 0x100, b"f".to_vec());
        jit.saw(PID, Avma(0x11));

        assert_eq!(names(&jit), []);
    }

    #[test]
    fn program_that_ends_takes_its_symbols_along() {
        let mut jit = empty();
        jit.symbol(PID, Avma(0x10), 0x10, b"f".to_vec());
        jit.saw(PID, Avma(0x10));

        jit.forget(PID);
        jit.saw(PID, Avma(0x11));

        assert_eq!(names(&jit), [(0x10, "f")]);
    }

    #[test]
    fn symbol_without_bytes_or_past_the_end_is_no_trouble() {
        let mut jit = empty();
        jit.saw(PID, Avma(u64::MAX - 1));

        jit.symbol(PID, Avma(u64::MAX - 1), 0, b"none".to_vec());
        jit.symbol(PID, Avma(u64::MAX - 2), u64::MAX, b"f".to_vec());

        assert_eq!(names(&jit), [(u64::MAX - 1, "f")]);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let limits = Limits { jit_symbols: 1, jit_addresses: 2, ..Limits::default() };
        let mut jit = JitNames::new(&limits);

        for address in 1..=3 {
            jit.saw(PID, Avma(address));
        }
        jit.symbol(PID, Avma(1), 1, b"f".to_vec());
        jit.symbol(PID, Avma(2), 1, b"g".to_vec());

        assert_eq!(names(&jit), [(1, "f")]);
        assert_eq!((jit.symbols_beyond_limit(), jit.addresses_beyond_limit()), (1, 1));
    }
}
