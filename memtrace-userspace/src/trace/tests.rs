//! Whole files: what goes in comes out, and what is broken is named.

mod files;
mod golden;
mod records;

use crate::record::Record;

use super::{Reader, TraceError, Truncation, Writer};

/// A finished trace; a block ends after every `block` records.
fn trace_of(records: &[Record], block: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for chunk in records.chunks(block) {
        for record in chunk {
            writer.write(record).unwrap();
        }
        writer.flush_block().unwrap();
    }
    writer.finish().unwrap()
}

/// Everything that a reader gives, until it stops for good.
fn read(bytes: &[u8]) -> (Vec<Record>, Result<Option<Truncation>, TraceError>) {
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut records = Vec::new();
    loop {
        match reader.read(&mut records, 2) {
            Ok(0) => return (records, Ok(reader.truncation())),
            Ok(_) => {}
            Err(error) => return (records, Err(error)),
        }
    }
}
