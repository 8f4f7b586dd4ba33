//! How the frames of profiles are called in text.

use super::{Frame, FrameId, Function, Path, Vocabulary};
use crate::views::frames::base_name;
use crate::views::label::source;

/// `parse  parse.c:15 → 18`: the function, its file's name, and its line on either side.
///
/// One side at least has it; lines are one where they are equal.
pub fn short(words: &Vocabulary, old: Option<FrameId>, new: Option<FrameId>) -> String {
    label(words, old, new, base_name)
}

/// [`short`] with the path of the file, or the module where no file is known.
pub fn long(words: &Vocabulary, old: Option<FrameId>, new: Option<FrameId>) -> String {
    label(words, old, new, source)
}

/// A line for each frame; a frame that recurs at once is one line, with ` × 200`.
pub fn lines(words: &Vocabulary, path: &Path) -> Vec<String> {
    let frames: Vec<FrameId> = words.frames(path).collect();
    frames
        .chunk_by(|a, b| a == b)
        .map(|run| match run.len() {
            1 => long(words, None, Some(run[0])),
            times => format!("{} × {times}", long(words, None, Some(run[0]))),
        })
        .collect()
}

/// The name of a function, or what stands for one.
pub fn function_name(function: &Function) -> String {
    match &function.name {
        Some(name) => name.to_string(),
        None => format!("?? in {}", function.module),
    }
}

fn label(
    words: &Vocabulary,
    old: Option<FrameId>,
    new: Option<FrameId>,
    path: fn(&str) -> &str,
) -> String {
    let (old, new) = (old.map(|id| words.frame(id)), new.map(|id| words.frame(id)));
    let Some(Frame { function, file, line }) = new.or(old) else { return "??".to_owned() };
    let function = words.function(*function);
    let mut label = function_name(function);
    match (file, line) {
        (Some(file), Some(line)) => {
            let old_line = old.and_then(|old| old.line).filter(|old| old != line);
            match old_line {
                Some(old) => label.push_str(&format!("  {}:{old} → {line}", path(file))),
                None => label.push_str(&format!("  {}:{line}", path(file))),
            }
        }
        (Some(file), None) => label.push_str(&format!("  {}", path(file))),
        (None, _) if function.name.is_some() => {
            label.push_str(&format!("  in {}", function.module));
        }
        (None, _) => {}
    }
    label
}
