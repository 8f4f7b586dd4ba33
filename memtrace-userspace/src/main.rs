//! The `memtrace` command.

fn main() {}
