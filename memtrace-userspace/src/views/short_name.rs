//! Names of functions as a person writes them.
//!
//! In: a demangled, printable name, in full. Out: what tells the function apart for a reader. Only
//! labels are shortened: functions are grouped by their full names, so two that share a label stay
//! two, and the JSON report has the full ones.
//!
//! ```text
//!   void std::vector<int, std::allocator<int> >::_M_realloc_insert<int const&>(int*, int const&)
//!        std::vector<int>::_M_realloc_insert<int const&>
//!
//!   left out   parameters, what a template function returns, [clone .part.0], __cxx11::, __1::
//!              template arguments that have a default; of the others, those that are long: <…>
//!              Rust's hash
//! ```
//!
//! A name that is not understood stays as it is. The work is linear in the name, times its depth.

use std::borrow::Cow;

/// Template arguments that are longer are left out.
const MAX_ARGUMENTS_CHARS: usize = 24;

/// A longer name stays as it is: labels are cut anyway.
const MAX_NAME_BYTES: usize = 4096;

/// Arguments that nested deeper are left out.
const MAX_DEPTH: usize = 8;

/// What templates of the standard library take unless they are told otherwise.
const DEFAULTS: &[&str] = &[
    "std::allocator<",
    "std::char_traits<",
    "std::default_delete<",
    "std::less<",
    "std::hash<",
    "std::equal_to<",
    "alloc::alloc::Global",
];

/// The name for labels.
pub(super) fn short_name(name: &str) -> Cow<'_, str> {
    let is_plain = !name.contains(['<', '(', '{', '[']) && !name.contains("::");
    if is_plain || name.len() > MAX_NAME_BYTES {
        return Cow::Borrowed(name);
    }
    match Shortener::default().run(without_rust_hash(name), 0) {
        Some(short) if !short.is_empty() => Cow::Owned(short),
        Some(_) | None => Cow::Borrowed(name),
    }
}

/// `foo::bar` of `foo::bar::h0123456789abcdef`.
fn without_rust_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((rest, hash))
            if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            rest
        }
        Some(_) | None => name,
    }
}

/// What has been written so far of one name.
#[derive(Default)]
struct Shortener {
    out: String,
    /// Where the name begins in `out`; what stands before is what the function returns.
    begin: usize,
    /// Whether parameters were left out: only then is there something before the name.
    has_parameters: bool,
}

impl Shortener {
    /// `None` if the brackets do not match.
    fn run(mut self, name: &str, depth: usize) -> Option<String> {
        let mut rest = name;
        while let Some(first) = rest.chars().next() {
            if let Some(after) = self.operator(rest) {
                rest = after;
                continue;
            }
            match first {
                '<' => {
                    let (arguments, after) = group(rest)?;
                    self.arguments(arguments, depth)?;
                    rest = after;
                }
                // A tuple, or the type of a function, has no name in front.
                '(' if rest.starts_with("(anonymous") || self.out.len() == self.begin => {
                    let (inner, after) = group(rest)?;
                    self.out.extend(["(", inner, ")"]);
                    rest = after;
                }
                '(' => {
                    let (inner, after) = group(rest)?;
                    let after_qualifiers = without_qualifiers(after);
                    if after_qualifiers.is_empty() || after_qualifiers.starts_with("::") {
                        self.has_parameters = true;
                        rest = after_qualifiers;
                    } else {
                        self.out.extend(["(", inner, ")"]);
                        rest = after;
                    }
                }
                '{' => {
                    let (inner, after) = group(rest)?;
                    self.braces(inner);
                    rest = after;
                }
                ')' | '>' | '}' => return None,
                ' ' => {
                    self.out.push(' ');
                    self.begin = self.out.len();
                    rest = &rest[1..];
                }
                ':' => {
                    self.out.push(':');
                    rest = &rest[1..];
                    if self.out.ends_with("::") {
                        let inline = ["__cxx11::", "__1::"].iter();
                        rest =
                            inline.fold(rest, |rest, name| rest.strip_prefix(name).unwrap_or(rest));
                    }
                }
                other => {
                    self.out.push(other);
                    rest = &rest[other.len_utf8()..];
                }
            }
        }
        if self.has_parameters {
            self.out.drain(..self.begin);
        }
        Some(self.out.trim_end().to_owned())
    }

    /// Copies an operator's name, which may hold brackets; gives what follows it.
    fn operator<'a>(&mut self, rest: &'a str) -> Option<&'a str> {
        let after = rest.strip_prefix("operator")?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if self.out.ends_with(is_word) || after.starts_with(is_word) {
            return None;
        }
        // Of `operator()`, the brackets are the name.
        let skip = if after.starts_with("()") { 2 } else { 0 };
        let end = after[skip..].find('(').map_or(after.len(), |at| skip + at);
        self.out.extend(["operator", &after[..end]]);
        Some(&after[end..])
    }

    /// Template arguments, or the `<T as Trait>` that a Rust path may begin with.
    fn arguments(&mut self, arguments: &str, depth: usize) -> Option<()> {
        if self.out.ends_with("std::basic_string") {
            let strings = [("char", "string"), ("wchar_t", "wstring")];
            let string = strings.iter().find(|(of, _)| arguments.split(',').next() == Some(of));
            if let Some((_, string)) = string {
                self.out.truncate(self.out.len() - "basic_string".len());
                self.out.push_str(string);
                return Some(());
            }
        }
        if depth >= MAX_DEPTH {
            self.out.push_str("<…>");
            return Some(());
        }
        let kept: Option<Vec<String>> = split(arguments)
            .filter(|argument| !DEFAULTS.iter().any(|default| argument.starts_with(default)))
            .map(|argument| Shortener::default().run(argument, depth + 1))
            .collect();
        let kept = kept?.join(", ");
        let is_path = self.out[self.begin..].is_empty();
        if is_path || kept.chars().count() <= MAX_ARGUMENTS_CHARS {
            self.out.extend(["<", &kept, ">"]);
        } else {
            self.out.push_str("<…>");
        }
        Some(())
    }

    /// `{lambda#1}` of `{lambda(int, char)#1}`; others as they are.
    fn braces(&mut self, inner: &str) {
        match (inner.strip_prefix("lambda("), inner.rfind(")#")) {
            (Some(_), Some(at)) => self.out.extend(["{lambda", &inner[at + 1..], "}"]),
            _ => self.out.extend(["{", inner, "}"]),
        }
    }
}

/// What is between the bracket that `text` begins with and its partner, and what follows.
fn group(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' | '(' | '{' | '[' => depth += 1,
            // The arrow of `fn() -> T`.
            '>' if before == '-' => {}
            '>' | ')' | '}' | ']' => {
                depth -= 1;
                if depth == 0 {
                    return Some((&text[1..at], &text[at + 1..]));
                }
            }
            _ => {}
        }
        before = c;
    }
    None
}

/// The parts of a list, without those within brackets.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let mut before = ' ';
    list.split(move |c| {
        match c {
            '<' | '(' | '{' | '[' => depth += 1,
            '>' if before == '-' => {}
            '>' | ')' | '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        before = c;
        c == ',' && depth == 0
    })
    .map(str::trim)
}

/// What follows ` const`, `&`, ` [clone .part.0]` and the like.
fn without_qualifiers(mut rest: &str) -> &str {
    loop {
        let words = [" const", " volatile", " noexcept", "&", " "];
        if let Some(after) = words.iter().find_map(|word| rest.strip_prefix(word)) {
            rest = after;
        } else if rest.starts_with("[clone ") || rest.starts_with("[abi:") {
            let Some((_, after)) = group(rest) else { return rest };
            rest = after;
        } else {
            return rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_a_person_writes_them() {
        let expected = [
            ("main", "main"),
            ("leak_per_request", "leak_per_request"),
            ("operator new(unsigned long)", "operator new"),
            ("operator new[](unsigned long, std::nothrow_t const&)", "operator new[]"),
            ("foo(int) [clone .part.0]", "foo"),
            ("v8::internal::Heap::Scavenge()", "v8::internal::Heap::Scavenge"),
            ("Ring<int, 4>::push()", "Ring<int, 4>::push"),
            (
                "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int const&>\
                 (__gnu_cxx::__normal_iterator<int*, std::vector<int, std::allocator<int> > >, \
                 int const&)",
                "std::vector<int>::_M_realloc_insert<int const&>",
            ),
            (
                "std::__cxx11::basic_string<char, std::char_traits<char>, \
                 std::allocator<char> >::_M_append(char const*, unsigned long)",
                "std::string::_M_append",
            ),
            (
                "std::map<std::__cxx11::basic_string<char, std::char_traits<char>, \
                 std::allocator<char> >, int, std::less<std::__cxx11::basic_string<char> >, \
                 std::allocator<std::pair<int const, int> > >::find(int) const",
                "std::map<std::string, int>::find",
            ),
            (
                "std::_Rb_tree<unsigned long long, std::pair<unsigned long long const, \
                 Session>, std::_Select1st<int> >::_M_copy()",
                "std::_Rb_tree<…>::_M_copy",
            ),
            (
                "node::(anonymous namespace)::Create(v8::Isolate*)",
                "node::(anonymous namespace)::Create",
            ),
            (
                "serve(int)::{lambda(char const*, int)#2}::operator()(char const*, int) const",
                "serve::{lambda#2}::operator()",
            ),
            (
                "std::ostream& operator<< <std::char_traits<char> >(std::ostream&, char)",
                "operator<< <std::char_traits<char> >",
            ),
            ("decltype(auto) visit<int>(int)", "visit<int>"),
            ("std::__1::basic_string<char, X>::append(char)", "std::string::append"),
            ("foo::bar::h0123456789abcdef", "foo::bar"),
            (
                "<alloc::vec::Vec<u8> as core::clone::Clone>::clone",
                "<alloc::vec::Vec<u8> as core::clone::Clone>::clone",
            ),
            (
                "<hashbrown::raw::RawTable<(alloc::string::String, alloc::vec::Vec<u8>)>>::reserve",
                "<hashbrown::raw::RawTable<…>>::reserve",
            ),
            (
                "core::ptr::drop_in_place<std::rt::lang_start<()>::{{closure}}>",
                "core::ptr::drop_in_place<…>",
            ),
            (
                "<fn() -> i32 as core::ops::FnOnce<()>>::call",
                "<fn() -> i32 as core::ops::FnOnce<()>>::call",
            ),
            ("app::run::{closure#0}", "app::run::{closure#0}"),
            ("void java.util.List.add(int)", "java.util.List.add"),
            ("(anonymous)", "(anonymous)"),
            ("get size", "get size"),
            ("StubRoutines (1)", "StubRoutines (1)"),
            ("?? <broken", "?? <broken"),
            ("a)b(", "a)b("),
        ];
        for (name, short) in expected {
            assert_eq!(short_name(name), short, "{name}");
        }
    }

    #[test]
    fn deep_and_long_names_are_no_trouble() {
        let deep = format!("f<{}int{}>", "a<".repeat(600), ">".repeat(600));
        let broken = "<".repeat(4000);

        assert_eq!(short_name(&deep), "f<…>");
        assert_eq!(short_name(&broken), broken);
        assert_eq!(short_name(&"a::".repeat(5000)), "a::".repeat(5000));
    }
}
