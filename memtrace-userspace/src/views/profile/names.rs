//! Names without what differs between two builds of one program.

use std::borrow::Cow;

use crate::views::attribution::without_decoration;
use crate::views::frames::base_name;

/// The name without clones of the compiler and hashes of crates.
///
/// ```text
///   parse(char const*) [clone .part.0]          parse(char const*)
///   parse.constprop.0                           parse
///   app[59807616e1fa2540]::run                  app::run
///   app::run::h0123456789abcdef                 app::run
/// ```
pub(super) fn comparable_name(name: &str) -> Cow<'_, str> {
    without_crate_hashes(without_decoration(name))
}

/// File name of a module, without the version of a library: `libz.so` of `/lib/libz.so.1.2.13`.
pub(super) fn comparable_module(path: &str) -> &str {
    let name = base_name(path);
    match name.find(".so.") {
        Some(end) => &name[..end + ".so".len()],
        None => name,
    }
}

/// `app::run` of `app[59807616e1fa2540]::run`; an array's length is no hash.
fn without_crate_hashes(name: &str) -> Cow<'_, str> {
    const DIGITS: usize = 16;
    let hash_at = |text: &str, start: usize| {
        let inside = text.get(start + 1..start + 1 + DIGITS)?;
        let closed = text.as_bytes().get(start + 1 + DIGITS) == Some(&b']');
        (closed && inside.bytes().all(|b| b.is_ascii_hexdigit())).then_some(start + DIGITS + 2)
    };
    let mut out = String::new();
    let mut rest = name;
    while let Some((start, end)) =
        rest.match_indices('[').find_map(|(start, _)| Some((start, hash_at(rest, start)?)))
    {
        out.push_str(&rest[..start]);
        rest = &rest[end..];
    }
    if out.is_empty() {
        return Cow::Borrowed(name);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compilers_append_is_no_part_of_a_name() {
        let cases = [
            ("parse", "parse"),
            ("parse.constprop.0", "parse"),
            ("parse.part.0.cold", "parse"),
            ("parse.lto_priv.3", "parse"),
            ("parse(char const*) [clone .part.0]", "parse(char const*)"),
            ("app::run::h0123456789abcdef", "app::run"),
            ("app[59807616e1fa2540]::run::<b[59807616e1fa2541]::T>", "app::run::<b::T>"),
            ("<[u8; 16]>::to_vec", "<[u8; 16]>::to_vec"),
            ("operator new[](unsigned long)", "operator new[](unsigned long)"),
            ("größe[", "größe["),
        ];
        for (name, expected) in cases {
            assert_eq!(comparable_name(name), expected, "{name}");
        }
    }

    #[test]
    fn version_of_a_library_is_no_part_of_its_name() {
        assert_eq!(comparable_module("/usr/lib/libz.so.1.2.13"), "libz.so");
        assert_eq!(comparable_module("/srv/app/server-1.2"), "server-1.2");
        assert_eq!(comparable_module("[vdso]"), "[vdso]");
    }
}
