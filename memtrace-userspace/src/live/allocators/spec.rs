//! Probes that the user names: the grammar of `--probe`.
//!
//! In: text. Out: a [`ProbeSpec`]. Pure; whether there is such a function, [`super::named`] finds
//! out. docs/probes.md explains it to users.
//!
//! ```text
//!   SPEC      KIND ':' [MODULE '!'] FUNCTION ['(' ARGUMENTS ')'] ['->' RESULT]
//!   KIND      alloc | realloc | free | ignore
//!   MODULE    path of a mapped file | its file name | '*' for the executable (the default)
//!   FUNCTION  a symbol, mangled or as reports show it | '0x' address in the file
//!   ARGUMENTS size=argN | size=argN*argN | ptr=argN     separated by commas, N from 0 to 5
//!   RESULT    ret | '*argN'
//! ```
//!
//! What is left out is as in C's function of that kind:
//!
//! ```text
//!   alloc:f      alloc:*!f(size=arg0)->ret
//!   realloc:f    realloc:*!f(ptr=arg0,size=arg1)->ret
//!   free:f       free:*!f(ptr=arg0)
//! ```

use std::fmt;
use std::str::FromStr;

use memtrace_common::addr::Svma;
use memtrace_common::call::{Argument, Call, Given};
use memtrace_common::event::Api;
use thiserror::Error;

use super::Role;

/// A function that the user wants to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What it does with memory.
    pub call: Call,
    /// The file that it is in.
    pub module: ModuleName,
    /// Which function of that file.
    pub function: FunctionName,
    /// The user's words.
    text: String,
}

/// Which mapped file is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleName {
    /// The program's executable.
    Executable,
    /// The file with this path, as the process sees it.
    Path(String),
    /// Every file with this name.
    FileName(String),
}

/// Which function is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionName {
    /// The one with this name.
    Symbol(String),
    /// The one that starts at this address, as the file states it.
    Address(Svma),
}

/// What is wrong with the text of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// It does not start with a kind.
    #[error(
        "expected `alloc:`, `realloc:`, `free:` or `ignore:` and a function, as in \
         `alloc:my_alloc(size=arg0)->ret`"
    )]
    Kind,
    /// There is no function in it.
    #[error("no function is named, as in `alloc:my_alloc(size=arg0)->ret`")]
    NoFunction,
    /// The address is no number.
    #[error("`{0}` is not an address in hexadecimal, such as 0x401230")]
    Address(String),
    /// An argument is something else than it may be.
    #[error(
        "`{0}` is none of `size=argN`, `size=argN*argN` and `ptr=argN`, where N is 0 to 5: later \
         arguments are not in registers"
    )]
    Argument(String),
    /// An argument is given twice.
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    /// The result is something else than it may be.
    #[error("`{0}` is neither `ret` nor `*argN`, where N is 0 to 5")]
    Result(String),
    /// A part does not belong to this kind.
    #[error("a probe of the kind `{kind}` has no {part}")]
    NotOfKind {
        /// The kind.
        kind: &'static str,
        /// What it does not have.
        part: &'static str,
    },
}

impl ProbeSpec {
    /// Whether the file at `path` is meant; `executable` is the path of the process's executable.
    pub fn is_in(&self, path: &[u8], executable: Option<&[u8]>) -> bool {
        match &self.module {
            ModuleName::Executable => executable == Some(path),
            ModuleName::Path(wanted) => wanted.as_bytes() == path,
            ModuleName::FileName(name) => {
                path.rsplit(|byte| *byte == b'/').next() == Some(name.as_bytes())
            }
        }
    }

    /// Whether it needs a return probe, and what for.
    pub fn role(&self) -> Role {
        if self.call.acquires() { Role::Acquire } else { Role::Enclose }
    }
}

impl fmt::Display for ProbeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FunctionName::Symbol(name) => f.write_str(name),
            FunctionName::Address(svma) => write!(f, "{:#x}", svma.0),
        }
    }
}

impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModuleName::Executable => "the executable",
            ModuleName::Path(path) => path,
            ModuleName::FileName(name) => name,
        })
    }
}

/// What a function does, without the details.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alloc,
    Realloc,
    Free,
    Ignore,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Alloc, Kind::Realloc, Kind::Free, Kind::Ignore];

    const fn name(self) -> &'static str {
        match self {
            Kind::Alloc => "alloc",
            Kind::Realloc => "realloc",
            Kind::Free => "free",
            Kind::Ignore => "ignore",
        }
    }
}

impl FromStr for ProbeSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<ProbeSpec, SpecError> {
        let (kind, rest) = text.split_once(':').ok_or(SpecError::Kind)?;
        let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).ok_or(SpecError::Kind)?;
        let (module, rest) = match rest.split_once('!') {
            Some(("" | "*", rest)) => (ModuleName::Executable, rest),
            Some((path, rest)) if path.contains('/') => (ModuleName::Path(path.to_owned()), rest),
            Some((name, rest)) => (ModuleName::FileName(name.to_owned()), rest),
            None => (ModuleName::Executable, rest),
        };
        // `->` may stand in the name of an operator, too.
        let (rest, given) = match rest.rsplit_once("->") {
            Some((rest, given)) if !rest.ends_with("operator") => (rest, Some(given)),
            _ => (rest, None),
        };
        let (function, arguments) = split_arguments(rest);
        let arguments = arguments.map(Arguments::parse).transpose()?.unwrap_or_default();
        let given = given.map(parse_given).transpose()?;
        Ok(ProbeSpec {
            call: call(kind, &arguments, given)?,
            module,
            function: parse_function(function)?,
            text: text.to_owned(),
        })
    }
}

/// Cuts the arguments off a function; parameters of a C++ name have no `=`.
fn split_arguments(text: &str) -> (&str, Option<&str>) {
    let inner = text.strip_suffix(')').and_then(|text| text.rsplit_once('('));
    match inner {
        Some((function, arguments)) if arguments.contains('=') => (function, Some(arguments)),
        _ => (text, None),
    }
}

fn parse_function(text: &str) -> Result<FunctionName, SpecError> {
    match text.strip_prefix("0x") {
        _ if text.trim().is_empty() => Err(SpecError::NoFunction),
        Some(digits) => u64::from_str_radix(digits, 16)
            .map(|svma| FunctionName::Address(Svma(svma)))
            .map_err(|_| SpecError::Address(text.to_owned())),
        None => Ok(FunctionName::Symbol(text.to_owned())),
    }
}

fn parse_given(text: &str) -> Result<Given, SpecError> {
    let wrong = || SpecError::Result(text.to_owned());
    match text.strip_prefix('*') {
        Some(argument) => parse_argument(argument).map(Given::Through).ok_or_else(wrong),
        None if text == "ret" => Ok(Given::Returned),
        None => Err(wrong()),
    }
}

fn parse_argument(text: &str) -> Option<Argument> {
    match text.strip_prefix("arg")?.as_bytes() {
        [digit @ b'0'..=b'5'] => Argument::new(digit - b'0'),
        _ => None,
    }
}

/// The arguments that are named.
#[derive(Default)]
struct Arguments {
    /// The size, and what it is multiplied with.
    size: Option<(Argument, Option<Argument>)>,
    ptr: Option<Argument>,
}

impl Arguments {
    fn parse(text: &str) -> Result<Arguments, SpecError> {
        let mut arguments = Arguments::default();
        for part in text.split(',').map(str::trim) {
            let wrong = || SpecError::Argument(part.to_owned());
            match part.split_once('=') {
                Some(("size", value)) => {
                    let (size, times) = match value.split_once('*') {
                        Some((size, times)) => {
                            (size, Some(parse_argument(times).ok_or_else(wrong)?))
                        }
                        None => (value, None),
                    };
                    let size = parse_argument(size).ok_or_else(wrong)?;
                    if arguments.size.replace((size, times)).is_some() {
                        return Err(SpecError::Twice("size"));
                    }
                }
                Some(("ptr", value)) => {
                    let ptr = parse_argument(value).ok_or_else(wrong)?;
                    if arguments.ptr.replace(ptr).is_some() {
                        return Err(SpecError::Twice("ptr"));
                    }
                }
                Some(_) | None => return Err(wrong()),
            }
        }
        Ok(arguments)
    }
}

fn call(kind: Kind, arguments: &Arguments, given: Option<Given>) -> Result<Call, SpecError> {
    let &Arguments { size, ptr } = arguments;
    let none = |is_there: bool, part| match is_there {
        true => Err(SpecError::NotOfKind { kind: kind.name(), part }),
        false => Ok(()),
    };
    let argument = |number| Argument::new(number).expect("the first ones are in registers");
    match kind {
        Kind::Alloc => {
            none(ptr.is_some(), "`ptr`")?;
            let (size, times) = size.unwrap_or((argument(0), None));
            let given = given.unwrap_or(Given::Returned);
            Ok(Call::Acquire {
                api: Api::CustomAlloc,
                size,
                times,
                block: None,
                given,
                alignment: None,
            })
        }
        Kind::Realloc => {
            let (size, times) = size.unwrap_or((argument(1), None));
            let block = Some(ptr.unwrap_or(argument(0)));
            let given = given.unwrap_or(Given::Returned);
            Ok(Call::Acquire {
                api: Api::CustomRealloc,
                size,
                times,
                block,
                given,
                alignment: None,
            })
        }
        Kind::Free => {
            none(size.is_some(), "`size`")?;
            none(given.is_some(), "result")?;
            Ok(Call::Release { api: Api::CustomFree, block: ptr.unwrap_or(argument(0)) })
        }
        Kind::Ignore => {
            none(size.is_some(), "`size`")?;
            none(ptr.is_some(), "`ptr`")?;
            none(given.is_some(), "result")?;
            Ok(Call::Ignore)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<ProbeSpec, SpecError> {
        text.parse()
    }

    fn argument(number: u8) -> Argument {
        Argument::new(number).unwrap()
    }

    #[test]
    fn all_parts_are_read() {
        let spec = parse("alloc:libpool.so.1!pool_calloc(size=arg1*arg2)->*arg3").unwrap();

        assert_eq!(
            spec.call,
            Call::Acquire {
                api: Api::CustomAlloc,
                size: argument(1),
                times: Some(argument(2)),
                block: None,
                given: Given::Through(argument(3)),
                alignment: None,
            }
        );
        assert_eq!(spec.module, ModuleName::FileName("libpool.so.1".into()));
        assert_eq!(spec.function, FunctionName::Symbol("pool_calloc".into()));
        assert_eq!(spec.to_string(), "alloc:libpool.so.1!pool_calloc(size=arg1*arg2)->*arg3");
    }

    #[test]
    fn what_is_left_out_is_as_in_c() {
        let same = [
            ("alloc:f", "alloc:*!f(size=arg0)->ret"),
            ("realloc:f", "realloc:!f(ptr=arg0, size=arg1)->ret"),
            ("free:f", "free:*!f(ptr=arg0)"),
        ];
        for (short, long) in same {
            let (short, long) = (parse(short).unwrap(), parse(long).unwrap());
            assert_eq!((short.call, &short.module), (long.call, &long.module));
            assert_eq!(short.function, FunctionName::Symbol("f".into()));
        }
    }

    #[test]
    fn names_of_cxx_keep_their_parameters() {
        let function = |text| parse(text).unwrap().function.to_string();

        assert_eq!(
            function("alloc:Pool::alloc(unsigned long)(size=arg1)"),
            "Pool::alloc(unsigned long)"
        );
        assert_eq!(function("alloc:Pool::alloc(unsigned long)"), "Pool::alloc(unsigned long)");
        assert_eq!(function("alloc:a::b<(c)1>(size=arg1)->ret"), "a::b<(c)1>");
        assert_eq!(function("ignore:Ptr::operator->"), "Ptr::operator->");
    }

    #[test]
    fn address_is_hexadecimal() {
        let spec = parse("free:/opt/bin/x!0x1f40(ptr=arg1)").unwrap();

        assert_eq!(spec.function, FunctionName::Address(Svma(0x1f40)));
        assert_eq!(spec.module, ModuleName::Path("/opt/bin/x".into()));
        assert_eq!(parse("free:0xno"), Err(SpecError::Address("0xno".into())));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(parse("my_alloc"), Err(SpecError::Kind));
        assert_eq!(parse("malloc:f"), Err(SpecError::Kind));
        assert_eq!(parse("alloc:"), Err(SpecError::NoFunction));
        assert_eq!(parse("alloc:x!"), Err(SpecError::NoFunction));
        assert_eq!(parse("alloc:f(size=arg6)"), Err(SpecError::Argument("size=arg6".into())));
        assert_eq!(parse("alloc:f(bytes=arg0)"), Err(SpecError::Argument("bytes=arg0".into())));
        assert_eq!(parse("alloc:f(size=arg0,size=arg1)"), Err(SpecError::Twice("size")));
        assert_eq!(parse("alloc:f->rax"), Err(SpecError::Result("rax".into())));
        let not = |kind, part| Err(SpecError::NotOfKind { kind, part });
        assert_eq!(parse("alloc:f(ptr=arg0)"), not("alloc", "`ptr`"));
        assert_eq!(parse("free:f(size=arg0)"), not("free", "`size`"));
        assert_eq!(parse("free:f->ret"), not("free", "result"));
        assert_eq!(parse("ignore:f(ptr=arg0)"), not("ignore", "`ptr`"));
    }

    #[test]
    fn module_is_matched_by_path_or_name() {
        let is_in = |text: &str| {
            let exe = Some(&b"/usr/bin/app"[..]);
            parse(text).unwrap().is_in(b"/usr/bin/app", exe)
        };

        assert!(is_in("free:f") && is_in("free:*!f") && is_in("free:app!f"));
        assert!(is_in("free:/usr/bin/app!f"));
        assert!(!is_in("free:/bin/app!f") && !is_in("free:pp!f"));
        assert!(!parse("free:f").unwrap().is_in(b"/usr/lib/x.so", Some(b"/usr/bin/app")));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(alloc:|free:|ignore:|realloc:)?[a-z!*()=,>0-9-]{0,24}") {
            let _ = parse(&text);
        }
    }
}
