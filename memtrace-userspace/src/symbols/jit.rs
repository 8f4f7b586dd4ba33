//! Names that runtimes give the code that they make, as [`Frame`]s.
//!
//! In: a name from a perf map. Out: the function, and its file and line where the runtime tells:
//!
//! ```text
//!   node    JS:*handle /srv/app.js:4:1      handle      /srv/app.js  4
//!           JS:~ node:net:12:3              (anonymous) node:net     12
//!   python  py::handle:/srv/app.py          handle      /srv/app.py
//!   others  void java.util.List.add(int)    as it is
//! ```
//!
//! The line is that of the function's first line, not of the call. The signs `~`, `^`, `+` and `*`
//! say which of V8's compilers made the code; a function is the same whoever compiled it.

use super::Frame;

/// Words that V8 puts before functions, in the releases that are around.
const V8_FUNCTIONS: &[&str] =
    &["JS:", "LazyCompile:", "Function:", "Script:", "Eval:", "InterpretedFunction:"];

/// Signs of V8's compilers.
const V8_COMPILERS: &[char] = &['~', '^', '+', '*'];

/// The frame of code that its runtime calls `name`.
pub fn jit_frame(name: &[u8]) -> Frame {
    let name = String::from_utf8_lossy(name);
    v8(&name)
        .or_else(|| python(&name))
        .unwrap_or_else(|| Frame { function: Some(name.as_ref().into()), ..Frame::default() })
}

fn v8(name: &str) -> Option<Frame> {
    let rest = V8_FUNCTIONS.iter().find_map(|word| name.strip_prefix(word))?;
    let rest = rest.strip_prefix(V8_COMPILERS).unwrap_or(rest);
    let (function, place) = split_place(rest).unwrap_or((rest, ""));
    let function = if function.is_empty() { "(anonymous)" } else { function };
    let (file, line) = file_and_line(place);
    Some(Frame {
        function: Some(function.into()),
        file: file.map(Into::into),
        line,
        ..Frame::default()
    })
}

/// `("get size", "/srv/my app.js:4:1")`: both parts may have spaces.
fn split_place(text: &str) -> Option<(&str, &str)> {
    let at = [" /", " node:", " file:"].iter().filter_map(|start| text.find(start)).min();
    let at = at.or_else(|| text.rfind(' '))?;
    Some((&text[..at], &text[at + 1..]))
}

/// The file and the line of `FILE:LINE:COLUMN`.
fn file_and_line(place: &str) -> (Option<&str>, Option<u32>) {
    let parsed = place.rsplit_once(':').and_then(|(rest, column)| {
        column.parse::<u32>().ok()?;
        let (file, line) = rest.rsplit_once(':')?;
        Some((file, line.parse().ok()?))
    });
    match parsed {
        Some((file, line)) if !file.is_empty() => (Some(file), Some(line)),
        Some(_) | None => (Some(place).filter(|place| !place.is_empty()), None),
    }
}

fn python(name: &str) -> Option<Frame> {
    let (function, file) = name.strip_prefix("py::")?.split_once(':')?;
    Some(Frame { function: Some(function.into()), file: Some(file.into()), ..Frame::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &str) -> (String, Option<String>, Option<u32>) {
        let Frame { function, file, line, inlined: _, symbol_start: _ } =
            jit_frame(name.as_bytes());
        (function.unwrap().to_string(), file.map(|file| file.to_string()), line)
    }

    fn expected(
        function: &str,
        file: Option<&str>,
        line: Option<u32>,
    ) -> (String, Option<String>, Option<u32>) {
        (function.to_owned(), file.map(str::to_owned), line)
    }

    #[test]
    fn function_of_node_has_file_and_line() {
        let handle = expected("handle", Some("/srv/app.js"), Some(4));
        for compiler in ["~", "^", "+", "*", ""] {
            assert_eq!(parts(&format!("JS:{compiler}handle /srv/app.js:4:1")), handle);
        }
        assert_eq!(parts("LazyCompile:*handle /srv/app.js:4:1"), handle);
    }

    #[test]
    fn function_of_node_without_name_is_anonymous() {
        let found = parts("JS:~ node:internal/timers:12:3");

        assert_eq!(found, expected("(anonymous)", Some("node:internal/timers"), Some(12)));
    }

    #[test]
    fn function_of_node_and_its_path_may_have_spaces() {
        let found = parts("JS:~get size /srv/my app.js:4:1");

        assert_eq!(found, expected("get size", Some("/srv/my app.js"), Some(4)));
    }

    #[test]
    fn function_of_node_without_place_is_its_name() {
        assert_eq!(parts("JS:~handle"), expected("handle", None, None));
        assert_eq!(parts("JS:~handle evalmachine"), expected("handle", Some("evalmachine"), None));
    }

    #[test]
    fn function_of_python_has_a_file() {
        let found = parts("py::Cache.fill:/srv/app.py");

        assert_eq!(found, expected("Cache.fill", Some("/srv/app.py"), None));
    }

    #[test]
    fn any_other_name_stays_as_it_is() {
        for name in ["void java.util.List.add(int)", "Builtin:ArrayMap", "py::x", "JS"] {
            assert_eq!(parts(name), expected(name, None, None));
        }
    }
}
