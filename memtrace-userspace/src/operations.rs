//! Operations that the user names by functions: which code of a process belongs to them.
//!
//! In: the words of `--operation`, and records. Out: the same records, and behind each module the
//! [`Record::Operation`]s that its functions are. Whoever counts knows no names, so a session and
//! the replay of its trace go by the same records; the replay of a trace that has none can be given
//! some here.
//!
//! ```text
//!   upload=handle_upload,receive_*
//!   Module server 0x5555…    →  Module server 0x5555…
//!                               Operation 0x55551200..0x55551580 upload      handle_upload
//! ```
//!
//! Names come from symbol tables, as [`symbols`] finds them. A function that is inlined has no
//! symbol there, and no code of its own: it is not found.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};
use thiserror::Error;

use crate::record::{Image, Module, Pid, Record};
use crate::symbols::{self, Wildcard, bare_name, demangle, without_clone};

/// The longest name of a class, in bytes.
const MAX_CLASS_BYTES: usize = 32;

/// The most files whose functions are remembered.
const MAX_FILES: usize = 4096;

/// A class of operations, and the functions that its call paths go through.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    class: String,
    functions: Vec<Wildcard>,
}

/// What is wrong with the text of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// There is no class, or one with other characters.
    #[error("expected CLASS=FUNCTION, as in `upload=handle_upload,receive_*`")]
    Class,
    /// The name means a severity.
    #[error("`{0}` is the name of a severity; choose another for the class")]
    Severity(String),
    /// A function has no name.
    #[error("a function has no name; expected some, as in `upload=handle_upload,receive_*`")]
    NoFunction,
}

/// Reads the name of a class: letters, digits, `-` and `_`, in whatever case.
pub fn class_name(text: &str) -> Option<String> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let fits = (1..=MAX_CLASS_BYTES).contains(&text.len()) && text.bytes().all(is_fit);
    fits.then(|| text.to_ascii_lowercase())
}

impl Spec {
    /// The name of the class, in small letters.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Whether a function is meant: by its name in the file, as reports show it, or by that without
    /// the arguments of the call.
    fn means(&self, in_file: &str, shown: &str) -> bool {
        let bare = bare_name(without_clone(shown));
        let mut names = [in_file, shown, bare].into_iter();
        names.any(|name| self.functions.iter().any(|function| function.matches(name)))
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Spec, SpecError> {
        let (class, functions) = text.split_once('=').ok_or(SpecError::Class)?;
        let class = class_name(class.trim()).ok_or(SpecError::Class)?;
        if ["medium", "high", "critical"].contains(&class.as_str()) {
            return Err(SpecError::Severity(class));
        }
        let functions: Vec<&str> = split(functions).into_iter().map(str::trim).collect();
        if functions.contains(&"") {
            return Err(SpecError::NoFunction);
        }
        Ok(Spec { class, functions: functions.into_iter().map(Wildcard::new).collect() })
    }
}

/// Cuts a list at its commas, but not at those between the brackets of a C++ name.
fn split(list: &str) -> Vec<&str> {
    let mut depth = 0u32;
    let is_end = |c: char| {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    list.split(is_end).collect()
}

/// Code of an operation in a file.
#[derive(Clone, Copy, Debug)]
struct Code {
    start: FileOffset,
    end: FileOffset,
    /// Index of its [`Spec`].
    spec: usize,
}

/// Where the files of a process are looked for.
type Places = dyn Fn(Pid) -> symbols::Options + Send + Sync;

/// Finds the code of operations, each file's once.
#[derive(Clone)]
pub struct Finder {
    specs: Vec<Spec>,
    places: Arc<Places>,
    known: HashMap<Image, Arc<[Code]>>,
}

impl fmt::Debug for Finder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finder { specs, places: _, known } = self;
        out.debug_struct("Finder").field("specs", specs).field("known", &known.len()).finish()
    }
}

impl Finder {
    /// Finds those of `specs`; `places` tells where the files of a process are looked for.
    pub fn new(
        specs: Vec<Spec>,
        places: impl Fn(Pid) -> symbols::Options + Send + Sync + 'static,
    ) -> Finder {
        Finder { specs, places: Arc::new(places), known: HashMap::new() }
    }

    /// Puts behind each module of `records` what of its code belongs to operations.
    pub fn insert(&mut self, records: &mut Vec<Record>) {
        if !records.iter().any(|record| matches!(record, Record::Module(_))) {
            return;
        }
        for record in std::mem::take(records) {
            let behind = match &record {
                Record::Module(module) => self.operations_in(module),
                _ => Vec::new(),
            };
            records.push(record);
            records.extend(behind);
        }
    }

    fn operations_in(&mut self, module: &Module) -> Vec<Record> {
        let &Module { pid, start: Avma(base), end: Avma(end), offset: from, .. } = module;
        let to = FileOffset(from.0.saturating_add(end.saturating_sub(base)));
        let code = self.code_in(&module.image, pid);
        let pieces = code.iter().map(|code| (code.start.max(from), code.end.min(to), code.spec));
        pieces
            .filter(|(start, end, _)| start < end)
            .map(|(start, end, spec)| Record::Operation {
                pid,
                start: Avma(base.wrapping_add(start.0 - from.0)),
                length: end.0 - start.0,
                class: self.specs[spec].class.clone(),
            })
            .collect()
    }

    fn code_in(&mut self, image: &Image, pid: Pid) -> Arc<[Code]> {
        if let Some(known) = self.known.get(image) {
            return Arc::clone(known);
        }
        let found = symbols::code_of(&(self.places)(pid), image, |name| {
            let in_file = String::from_utf8_lossy(name);
            let shown = demangle::demangle(name);
            self.specs.iter().position(|spec| spec.means(&in_file, &shown))
        });
        let code: Arc<[Code]> = match found {
            Ok(Ok(found)) => {
                found.into_iter().map(|(start, end, spec)| Code { start, end, spec }).collect()
            }
            // Code without names belongs to no operation; reports name the modules that have none.
            Ok(Err(miss)) => {
                tracing::debug!("no operations are looked for: {miss}");
                Arc::default()
            }
            Err(error) => {
                tracing::debug!("no operations are looked for: {error}");
                Arc::default()
            }
        };
        if self.known.len() >= MAX_FILES {
            self.known.clear();
        }
        self.known.insert(image.clone(), Arc::clone(&code));
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Spec, SpecError> {
        text.parse()
    }

    #[test]
    fn functions_are_matched_as_files_and_reports_have_them() {
        let means = |pattern: &str, in_file: &str| {
            let shown = demangle::demangle(in_file.as_bytes());
            spec(&format!("x={pattern}")).unwrap().means(in_file, &shown)
        };

        assert!(means("sqlite3_step", "sqlite3_step"));
        assert!(!means("sqlite3_step", "sqlite3_steps"));
        assert!(means("receive_*", "receive_all") && !means("receive_*", "do_receive_all"));
        assert!(means("parse", "parse.isra.1.cold") && !means("main", "main.coldStart"));
        assert!(means("store::Table::insert", "_ZN5store5Table6insertEi"));
        assert!(means("store::Table::insert(int)", "_ZN5store5Table6insertEi"));
        assert!(means("_ZN5store5Table6insertEi", "_ZN5store5Table6insertEi"));
        assert!(means("*::insert", "_ZN5store5Table6insertEi"));
        assert!(!means("insert", "_ZN5store5Table6insertEi"));
        assert!(means("app::upload", "_ZN3app6upload17h0123456789abcdefE"));
        assert!(means("first,second", "second"));
    }

    #[test]
    fn commas_inside_a_name_do_not_end_it() {
        let functions = split("a<int, 4>::f(char, int),g");

        assert_eq!(functions, ["a<int, 4>::f(char, int)", "g"]);
    }

    #[test]
    fn class_is_read_in_any_case() {
        assert_eq!(spec("Select=f").unwrap().class(), "select");
        assert_eq!(class_name("Bulk-Load_2").as_deref(), Some("bulk-load_2"));
    }

    #[test]
    fn code_of_operations_stands_behind_its_module() {
        let own = std::env::current_exe().unwrap();
        let path = own.to_str().unwrap().as_bytes().to_vec();
        let pid = Pid(1);
        let module = |start: u64, bytes: u64, offset: u64| {
            Record::Module(Module {
                time: crate::record::Time(0),
                pid,
                start: Avma(start),
                end: Avma(start + bytes),
                offset: FileOffset(offset),
                image: Image::File { path: path.clone(), build_id: vec![] },
            })
        };
        let specs = vec![spec("read=*operations::class_name").unwrap()];
        let mut finder = Finder::new(specs, |_| symbols::Options::default());
        let gone = Record::ModuleGone { time: crate::record::Time(0), pid, start: Avma(0) };

        // The whole file at 1 << 40, then a piece that ends in the middle of the function.
        let mut records = vec![module(1 << 40, 1 << 32, 0), gone.clone()];
        finder.insert(&mut records);
        let [_, Record::Operation { start, length, class, .. }, last] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!((class.as_str(), last), ("read", &gone));
        let (offset, length) = (start.0 - (1 << 40), *length);
        let mut cut = vec![module(0x1000, offset + length / 2, 0), module(0x1000, offset, 0)];
        finder.insert(&mut cut);

        assert_eq!(cut.len(), 3);
        let half = Record::Operation {
            pid,
            start: Avma(0x1000 + offset),
            length: length / 2,
            class: "read".into(),
        };
        assert_eq!(cut[1], half);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(spec("sqlite3_step"), Err(SpecError::Class));
        assert_eq!(spec("=f"), Err(SpecError::Class));
        assert_eq!(spec("two words=f"), Err(SpecError::Class));
        assert_eq!(spec(&format!("{}=f", "x".repeat(33))), Err(SpecError::Class));
        assert_eq!(spec("High=f"), Err(SpecError::Severity("high".into())));
        assert_eq!(spec("bulk="), Err(SpecError::NoFunction));
        assert_eq!(spec("bulk=f,,g"), Err(SpecError::NoFunction));
    }
}
