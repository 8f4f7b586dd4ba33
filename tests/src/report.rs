//! A JSON report, read as another tool would read it.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A report of `memtrace report --format json`.
#[derive(Debug)]
pub struct Report {
    /// The whole document.
    pub json: Value,
    /// Its `stacks`.
    pub stacks: Vec<Stack>,
}

/// An entry of `stacks`.
#[derive(Debug)]
pub struct Stack {
    /// Through which function the memory came.
    pub api: String,
    /// Why the walk ended.
    pub end: String,
    /// From the allocating function outwards.
    pub frames: Vec<Frame>,
    /// The entry itself, for its numbers.
    pub json: Value,
}

/// A frame of a stack.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function, if its name is known.
    pub function: Option<String>,
    /// Path of the file it lies in.
    pub module: String,
    /// Path of its source file, if that is known.
    pub file: Option<String>,
    /// The line in it, likewise.
    pub line: Option<u64>,
    /// Whether the next frame holds its code.
    pub inlined: bool,
}

impl Report {
    /// Reads a document; what is missing or of another type is an error.
    pub fn parse(text: &str) -> Result<Report> {
        let json: Value = serde_json::from_str(text).context("the report is not JSON")?;
        if json["format"] != "memtrace-report" || json["version"] != 2 {
            bail!("not a memtrace report of version 2: {} {}", json["format"], json["version"]);
        }
        let stacks = json["stacks"].as_array().context("the report has no `stacks`")?;
        let parse = |stack| parse_stack(&json, stack);
        let stacks = stacks.iter().map(parse).collect::<Result<Vec<_>>>()?;
        Ok(Report { json, stacks })
    }

    /// The number at a path such as `/capture/lost_events`.
    pub fn number(&self, pointer: &str) -> Result<u64> {
        let value = self.json.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("the report has no number at {pointer}"))
    }

    /// A counter; 0 if the report does not list it.
    pub fn counter(&self, name: &str) -> u64 {
        self.json["counters"][name].as_u64().unwrap_or(0)
    }

    /// The share of heap allocations whose stacks reach the root of their thread.
    pub fn share_of_complete_allocations(&self) -> f64 {
        let mut all = 0u64;
        let mut complete = 0u64;
        for stack in self.stacks.iter().filter(|stack| stack.is_heap()) {
            let allocations = stack.json["allocations"].as_u64().unwrap_or(0);
            all += allocations;
            if stack.end == "root" {
                complete += allocations;
            }
        }
        if all == 0 { 0.0 } else { complete as f64 / all as f64 }
    }
}

impl Stack {
    /// Whether it is about heap blocks, not mappings.
    pub fn is_heap(&self) -> bool {
        !is_mapping_api(&self.api)
    }

    /// The outermost frame.
    pub fn root(&self) -> Option<&Frame> {
        self.frames.last()
    }

    /// The frames on one line, innermost first.
    pub fn path(&self) -> String {
        let names = self.frames.iter().map(|frame| frame.function.as_deref().unwrap_or("??"));
        names.collect::<Vec<_>>().join(" < ")
    }
}

impl Frame {
    /// Whether this is the function of that name.
    ///
    /// rustc's older mangling leaves a hash behind the name, which tables do not give.
    pub fn is(&self, name: &str) -> bool {
        let Some(function) = self.function.as_deref() else {
            return false;
        };
        let hash = function.strip_prefix(name).and_then(|rest| rest.strip_prefix("::h"));
        function == name
            || hash.is_some_and(|hash| {
                hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
    }

    /// Whether a thread can begin here: `_start`, or the C library's `clone`.
    ///
    /// The C library is often stripped of the names of its inner functions.
    pub fn is_thread_root(&self) -> bool {
        const ROOTS: [&str; 8] = [
            "_start",
            "__clone3",
            "clone3",
            "__clone",
            "clone",
            "_dl_start_user",
            // musl's, with names only where it is linked statically.
            "libc_start_main_stage2",
            "start",
        ];
        let file = self.module.rsplit('/').next().unwrap_or_default();
        match self.function.as_deref() {
            Some(function) => ROOTS.contains(&function),
            None => file.starts_with("libc.so") || file.starts_with("ld-"),
        }
    }
}

/// Whether an API makes mappings rather than heap blocks.
pub fn is_mapping_api(api: &str) -> bool {
    matches!(api, "mmap" | "munmap" | "mremap" | "brk" | "mprotect")
}

/// The frames of an entry with a call path, in a report of any kind; the allocating function first.
pub fn frames(report: &Value, entry: &Value) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    for index in entry["places"].as_array().context("a call path has no `places`")? {
        let index = index.as_u64().context("an index is no number")?;
        let place = &report["places"][usize::try_from(index)?];
        let inside = place["frames"].as_array().with_context(|| format!("no place {index}"))?;
        for (depth, frame) in inside.iter().enumerate() {
            frames.push(Frame {
                function: frame["function"].as_str().map(str::to_owned),
                module: text(place, "module")?,
                file: frame["file"].as_str().map(str::to_owned),
                line: frame["line"].as_u64(),
                inlined: depth + 1 < inside.len(),
            });
        }
    }
    Ok(frames)
}

fn parse_stack(report: &Value, json: &Value) -> Result<Stack> {
    Ok(Stack {
        api: text(json, "api")?,
        end: text(json, "end")?,
        frames: frames(report, json)?,
        json: json.clone(),
    })
}

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("no `{key}` in {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: Option<&str>, module: &str) -> Frame {
        let function = function.map(str::to_owned);
        Frame { function, module: module.to_owned(), file: None, line: None, inlined: false }
    }

    #[test]
    fn hash_of_rustc_is_no_part_of_a_name() {
        assert!(frame(Some("a::b::h0123456789abcdef"), "a").is("a::b"));
        assert!(frame(Some("a::b"), "a").is("a::b"));
        assert!(!frame(Some("a::b::hello"), "a").is("a::b"));
        assert!(!frame(None, "a").is("a::b"));
    }

    #[test]
    fn nameless_frame_is_a_root_only_in_the_c_library() {
        assert!(frame(Some("_start"), "/x/leak").is_thread_root());
        assert!(frame(None, "/lib/libc.so.6").is_thread_root());
        assert!(!frame(None, "/x/leak").is_thread_root());
        assert!(!frame(Some("main"), "/x/leak").is_thread_root());
    }
}
