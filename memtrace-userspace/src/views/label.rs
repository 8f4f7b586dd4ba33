//! How functions, frames and amounts are called in text.

use crate::views::frames::{Frame, Function, base_name};
use crate::views::layout::{cut, width};
use crate::views::quantity::{bytes, count};
use crate::views::ranking::SortKey;

/// A value of a sort key, in its unit.
pub fn amount(key: SortKey, value: u64) -> String {
    match key {
        SortKey::Live | SortKey::Peak | SortKey::Allocated => bytes(value),
        SortKey::Allocations => count(value),
    }
}

/// `leak_per_request  server.c:41`, `?? in plugin.so`, cut to fit; the place only if it fits too.
pub fn function_label(function: &Function, line: Option<u32>, cells: usize) -> String {
    let name = match &function.name {
        Some(name) => name.to_string(),
        None => format!("?? in {}", base_name(&function.module)),
    };
    match (&function.file, line) {
        (Some(file), Some(line)) => {
            let label = format!("{name}  {}:{line}", base_name(file));
            if width(&label) <= cells { label } else { cut(&name, cells).into_owned() }
        }
        (Some(_) | None, _) => cut(&name, cells).into_owned(),
    }
}

/// A line for each frame; a frame that recurs at once is one line, with ` × 200`.
pub fn frame_labels(frames: &[Frame]) -> Vec<String> {
    frames
        .chunk_by(|a, b| a.function.id == b.function.id && a.line == b.line)
        .map(|run| match run {
            [only] => frame_label(only),
            _ => format!("{} × {}", frame_label(&run[0]), run.len()),
        })
        .collect()
}

/// `handle  src/server.c:60`, `mmap  in libc.so.6`, with `(inlined)` where it is.
fn frame_label(frame: &Frame) -> String {
    let function = &frame.function;
    let mut label = match &function.name {
        Some(name) => name.to_string(),
        None => "??".to_owned(),
    };
    if frame.inlined {
        label.push_str(" (inlined)");
    }
    match (&function.file, frame.line) {
        (Some(file), Some(line)) => label.push_str(&format!("  {file}:{line}")),
        (Some(file), None) => label.push_str(&format!("  {file}")),
        (None, _) => label.push_str(&format!("  in {}", base_name(&function.module))),
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::rank;

    #[test]
    fn place_of_a_function_is_left_out_where_it_does_not_fit() {
        let ranking = rank(&fixture::snapshot(), &mut fixture::names(), SortKey::Live);
        let label = |cells| function_label(&ranking.functions[0].function, Some(41), cells);

        assert_eq!(label(40), "leak_per_request  server.c:41");
        assert_eq!(label(28), "leak_per_request");
        assert_eq!(label(10), "leak_per_…");
    }
}
