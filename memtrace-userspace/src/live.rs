//! The live source: attaches to a process and turns its ring events into records.
