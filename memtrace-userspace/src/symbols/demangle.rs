//! Symbol names as people write them.
//!
//! In: the bytes of a name from a symbol table or from DWARF. Out: text. The scheme is told from
//! the name itself, because a C++ program links Rust libraries and the other way round. Names stay
//! in full: C++ keeps parameters and template arguments, Rust loses only its hash.
//!
//! A mangled name of a hundred bytes can stand for gigabytes of text (each substitution may
//! double it), so the output is cut off at [`MAX_NAME_BYTES`] and such a name stays mangled.

use std::fmt::{self, Write};

/// The longest name that is given out, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 64 << 10;

/// Deep templates nest further than cpp_demangle's default of 96; both limits stay within a
/// quarter of a 2 MiB stack in a debug build.
const PARSE_RECURSION: u32 = 192;
const PRINT_RECURSION: u32 = 256;

/// Demangles `name`; a name that is not mangled comes back as it is.
pub(crate) fn demangle(name: &[u8]) -> String {
    let name = without_version(name);
    let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
    let text = String::from_utf8_lossy(name);
    rust(&text).or_else(|| cpp(&text)).unwrap_or_else(|| text.into_owned())
}

/// Whether the name follows a C++ or Rust mangling scheme.
pub(super) fn is_mangled(name: &[u8]) -> bool {
    name.starts_with(b"_Z") || name.starts_with(b"_R")
}

/// The name without the arguments of the call: `a::parse` of `a::parse(char const*) const`.
pub(crate) fn bare_name(name: &str) -> &str {
    let name = name.strip_suffix(" const").unwrap_or(name);
    if !name.ends_with(')') {
        return name;
    }
    let mut depth = 0u32;
    for (index, c) in name.char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            // `operator()` has no arguments here, it is a name.
            let bare = &name[..index];
            return if bare.is_empty() || bare.ends_with("operator") { name } else { bare };
        }
    }
    name
}

/// The name without what compilers append to a function that they have copied or cut in pieces:
/// `parse` of `parse.part.0.cold`, `parse(int)` of `parse(int) [clone .part.0]`.
pub(crate) fn without_clone(name: &str) -> &str {
    const CLONES: [&str; 6] = [".cold.", ".constprop.", ".isra.", ".llvm.", ".lto_priv.", ".part."];
    let mut name = name.split_once(" [clone ").map_or(name, |(name, _)| name);
    loop {
        let unnumbered = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let clone = CLONES.iter().find_map(|clone| unnumbered.strip_suffix(clone));
        match name.strip_suffix(".cold").or(clone.filter(|_| unnumbered.len() < name.len())) {
            Some(rest) if !rest.is_empty() => name = rest,
            Some(_) | None => return name,
        }
    }
}

/// Cuts the version off a name such as `memcpy@@GLIBC_2.14`.
fn without_version(name: &[u8]) -> &[u8] {
    match name.iter().position(|byte| *byte == b'@') {
        Some(at) if at > 0 => &name[..at],
        Some(_) | None => name,
    }
}

fn rust(name: &str) -> Option<String> {
    if !name.starts_with("_R") && !has_rust_hash(name) {
        return None;
    }
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut out = Bounded::default();
    // The alternate form leaves the hash away.
    write!(out, "{demangled:#}").ok()?;
    Some(out.text)
}

/// Whether this is `_ZN…17h<16 hex digits>E`, which would also parse as a C++ name.
fn has_rust_hash(name: &str) -> bool {
    // Code generation may append `.llvm.123` and the like.
    let end = name.find("E.llvm.").or_else(|| name.strip_suffix('E').map(str::len));
    let hash = end.and_then(|end| name.get(end.checked_sub(19)?..end));
    name.starts_with("_ZN")
        && hash
            .and_then(|hash| hash.strip_prefix("17h"))
            .is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

fn cpp(name: &str) -> Option<String> {
    if !name.starts_with("_Z") && !name.starts_with("_GLOBAL_") {
        return None;
    }
    itanium(name).or_else(|| itanium(&without_unresolved_std(name)?))
}

fn itanium(name: &str) -> Option<String> {
    let parse = cpp_demangle::ParseOptions::default().recursion_limit(PARSE_RECURSION);
    let symbol = cpp_demangle::BorrowedSymbol::new_with_options(name.as_bytes(), &parse).ok()?;
    // `Ring<T, 4>`, not `Ring<T, (unsigned int)4>`.
    let print = cpp_demangle::DemangleOptions::new()
        .hide_expression_literal_types()
        .recursion_limit(PRINT_RECURSION);
    let mut out = Bounded::default();
    symbol.structured_demangle(&mut out, &print).ok()?;
    Some(out.text)
}

/// Rewrites the form of `std::trait<…>::value` that cpp_demangle does not know.
///
/// In the signature of a template, GCC up to ABI 16 mangles `std::is_array<T>::value` as
/// `srSt8is_arrayIT_E5value`, an unresolved name whose type is no substitution. The grammar has no
/// such form, but `std::make_shared`, `std::swap` and what `std::vector` grows with have it in
/// their return types. `L_ZNSt8is_arrayIT_E5valueEE`, a reference to the member, is known, prints
/// the same and numbers substitutions the same.
fn without_unresolved_std(name: &str) -> Option<String> {
    let mut pieces = name.split("srSt");
    let mut rewritten = pieces.next()?.to_owned();
    for piece in pieces {
        let (member, at) = ["E5value", "E7__value"]
            .into_iter()
            .filter_map(|member| Some((member, piece.find(member)?)))
            .min_by_key(|(_, at)| *at)?;
        let (qualified, rest) = piece.split_at(at + member.len());
        write!(rewritten, "L_ZNSt{qualified}EE{rest}").ok()?;
    }
    Some(rewritten)
}

/// A string that refuses to grow beyond [`MAX_NAME_BYTES`].
#[derive(Default)]
struct Bounded {
    text: String,
}

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.text.len() + piece.len() > MAX_NAME_BYTES {
            return Err(fmt::Error);
        }
        self.text.push_str(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_name_stays() {
        assert_eq!(demangle(b"main"), "main");
    }

    #[test]
    fn cpp_name_keeps_parameters_and_template_arguments() {
        let name = b"_ZNSt6vectorIiSaIiEE17_M_realloc_insertIJRKiEEEvN9__gnu_cxx17__normal_iteratorIPiS1_EEDpOT_";

        assert_eq!(
            demangle(name),
            "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int const&>\
             (__gnu_cxx::__normal_iterator<int*, std::vector<int, std::allocator<int> > >, int const&)"
        );
    }

    #[test]
    fn cpp_name_with_a_trait_of_std_is_demangled() {
        let name = b"_ZSt11make_sharedI1VJS0_EESt10shared_ptrINSt9enable_ifIXntsrSt8is_arrayIT_E5valueES4_E4typeEEDpOT0_";

        assert_eq!(
            demangle(name),
            "std::shared_ptr<std::enable_if<!std::is_array<V>::value, V>::type> \
             std::make_shared<V, V>(V&&)"
        );
    }

    #[test]
    fn cpp_literal_is_printed_without_its_type() {
        assert_eq!(demangle(b"_ZN4RingIiLj4EE4pushEv"), "Ring<int, 4>::push()");
    }

    #[test]
    fn cpp_clone_suffix_is_kept() {
        assert_eq!(demangle(b"_Z3fooi.part.0"), "foo(int) [clone .part.0]");
    }

    #[test]
    fn legacy_rust_name_loses_its_hash() {
        let name = b"_ZN4core3ptr85drop_in_place$LT$std..rt..lang_start$LT$$LP$$RP$$GT$..$u7b$$u7b$closure$u7d$$u7d$$GT$17h0123456789abcdefE";

        assert_eq!(
            demangle(name),
            "core::ptr::drop_in_place<std::rt::lang_start<()>::{{closure}}>"
        );
    }

    #[test]
    fn rust_name_with_llvm_suffix_is_demangled() {
        assert_eq!(demangle(b"_ZN3foo3bar17h0123456789abcdefE.llvm.123456"), "foo::bar");
    }

    #[test]
    fn v0_rust_name_is_demangled() {
        assert_eq!(demangle(b"_RNvCs1234_7mycrate3foo"), "mycrate::foo");
    }

    #[test]
    fn cpp_name_that_resembles_rust_is_cpp() {
        assert_eq!(demangle(b"_ZN3foo3barEv"), "foo::bar()");
    }

    #[test]
    fn version_is_cut_off() {
        assert_eq!(demangle(b"memcpy@@GLIBC_2.14"), "memcpy");
    }

    #[test]
    fn name_that_would_explode_stays_mangled() {
        // Each substitution names a pair of the one before: 2^40 leaves.
        let mut name = String::from("_Z1fSt4pairIiiE");
        for level in 0..40 {
            let id = if level == 0 {
                "S_".to_owned()
            } else {
                format!("S{}_", char::from_digit((level - 1) % 36, 36).unwrap().to_uppercase())
            };
            name.push_str(&format!("St4pairI{id}{id}E"));
        }

        let demangled = demangle(name.as_bytes());

        assert!(demangled.len() <= MAX_NAME_BYTES);
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        assert_eq!(demangle(b"f\xffo"), "f\u{fffd}o");
    }

    #[test]
    fn over_long_name_is_cut() {
        assert_eq!(demangle(&vec![b'a'; MAX_NAME_BYTES + 1]).len(), MAX_NAME_BYTES);
    }

    #[test]
    fn what_compilers_append_is_cut_off() {
        let cases = [
            ("parse", "parse"),
            ("parse.part.0.cold", "parse"),
            ("parse.isra.1.cold.12", "parse"),
            ("parse.lto_priv.3", "parse"),
            ("parse(int) [clone .part.0] [clone .cold]", "parse(int)"),
            ("main.coldStart", "main.coldStart"),
            ("main.part.", "main.part."),
            (".cold", ".cold"),
        ];
        for (name, expected) in cases {
            assert_eq!(without_clone(name), expected, "{name}");
        }
    }

    #[test]
    fn bare_name_has_no_call_arguments() {
        let cases = [
            ("parse", "parse"),
            ("a::parse(char const*, int (*)(int)) const", "a::parse"),
            ("(anonymous namespace)::fill()", "(anonymous namespace)::fill"),
            ("Less::operator()(int, int)", "Less::operator()"),
            ("Less::operator()", "Less::operator()"),
            ("<fn(u8) as T>::call", "<fn(u8) as T>::call"),
            (")", ")"),
        ];
        for (name, expected) in cases {
            assert_eq!(bare_name(name), expected, "{name}");
        }
    }
}
