//! How functions, frames and amounts are called in text.

use std::sync::Arc;

use crate::pipeline::snapshot::Place;
use crate::views::frames::{Frame, Function, SymbolizedStack, base_name};
use crate::views::layout::{cut, width};
use crate::views::quantity::{bytes, count};
use crate::views::ranking::SortKey;
use crate::views::short_name::short_name;

/// A value of a sort key, in its unit.
pub(super) fn amount(key: SortKey, value: u64) -> String {
    match key {
        SortKey::Live | SortKey::Peak | SortKey::Allocated => bytes(value),
        SortKey::Allocations | SortKey::Temporary => count(value),
    }
}

/// `leak_per_request  server.c:41`, `?? in plugin.so`, cut to fit; the place only if it fits too.
pub(super) fn function_label(function: &Function, line: Option<u32>, cells: usize) -> String {
    let name = match &function.name {
        Some(name) => short_name(name).into_owned(),
        None => format!("?? in {}", base_name(&function.module)),
    };
    match (&function.file, line) {
        (Some(file), Some(line)) => {
            let label = format!("{name}  {}:{line}", base_name(file));
            if width(&label) <= cells { label } else { cut_name(&name, cells) }
        }
        (Some(_) | None, _) => cut_name(&name, cells),
    }
}

/// `…ArrayBufferAllocator::Allocate`: of a path, the end tells most.
fn cut_name(name: &str, cells: usize) -> String {
    let last = name.rsplit("::").next().unwrap_or(name);
    if width(name) <= cells || last.len() == name.len() || width(last) + 3 > cells {
        return cut(name, cells).into_owned();
    }
    let (mut start, mut used) = (name.len(), 1);
    for (at, c) in name.char_indices().rev() {
        used += width(c.encode_utf8(&mut [0; 4]));
        if used > cells {
            break;
        }
        start = at;
    }
    format!("…{}", &name[start..])
}

/// A line for each frame; a frame that recurs at once is one line, with ` × 200`.
pub(super) fn frame_labels(stack: &SymbolizedStack) -> Vec<String> {
    let frames: Vec<&Arc<Frame>> = stack.frames().collect();
    frames
        .chunk_by(|a, b| {
            let one_function = a.function.name.is_some() || a.place == b.place;
            a.function.id == b.function.id && a.line == b.line && one_function
        })
        .map(|run| match run {
            [only] => frame_label(only),
            _ => format!("{} × {}", frame_label(run[0]), run.len()),
        })
        .collect()
}

/// `handle  src/server.c:60`, `mmap  in libc.so.6`, `??  plugin.so+0x4000`, and what is inlined.
fn frame_label(frame: &Frame) -> String {
    let function = &frame.function;
    let mut label = match &function.name {
        Some(name) => short_name(name).into_owned(),
        None => "??".to_owned(),
    };
    if frame.inlined {
        label.push_str(" (inlined)");
    }
    match (&function.file, frame.line) {
        (Some(file), Some(line)) => label.push_str(&format!("  {}:{line}", source(file))),
        (Some(file), None) => label.push_str(&format!("  {}", source(file))),
        (None, _) if function.name.is_some() => {
            label.push_str(&format!("  in {}", base_name(&function.module)));
        }
        (None, _) => {
            let place = format!("  {}+{}", base_name(&function.module), address(frame.place));
            label.push_str(&place);
        }
    }
    label
}

/// `library/alloc/src/vec/mod.rs` of `/rustc/<hash>/library/alloc/src/vec/mod.rs`.
///
/// No such directory exists anywhere; the hash only says which compiler built the library.
pub(super) fn source(file: &str) -> &str {
    file.strip_prefix("/rustc/")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(hash, _)| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map_or(file, |(_, path)| path)
}

/// Offset in the module's file; address in the process for code without a file.
pub(super) fn address(place: Place) -> String {
    match place {
        Place::InFile { image: _, offset } => format!("{offset:#x}"),
        Place::Anonymous { pid: _, address } | Place::Unknown { pid: _, address } => {
            format!("{address:#x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::rank;

    #[test]
    fn source_of_rusts_library_is_shown_without_its_hash() {
        let hash = "59807616e1fa2540724bfbac14d7976d7e4a3860";

        assert_eq!(
            source(&format!("/rustc/{hash}/library/std/src/thread.rs")),
            "library/std/src/thread.rs"
        );
        assert_eq!(source("/rustc/main.rs"), "/rustc/main.rs");
        assert_eq!(source("/srv/app/main.rs"), "/srv/app/main.rs");
    }

    #[test]
    fn place_of_a_function_is_left_out_where_it_does_not_fit() {
        let ranking = rank(&fixture::snapshot(), &mut fixture::names(), SortKey::Live);
        let label = |cells| function_label(&ranking.functions[0].function, Some(41), cells);

        assert_eq!(label(40), "leak_per_request  server.c:41");
        assert_eq!(label(28), "leak_per_request");
        assert_eq!(label(10), "leak_per_…");
    }

    #[test]
    fn path_that_does_not_fit_loses_its_beginning() {
        let name = "node::NodeArrayBufferAllocator::Allocate";

        assert_eq!(cut_name(name, 40), name);
        assert_eq!(cut_name(name, 26), "…BufferAllocator::Allocate");
        assert_eq!(cut_name(name, 8), "node::N…");
        assert_eq!(cut_name("leak_per_request", 10), "leak_per_…");
    }
}
