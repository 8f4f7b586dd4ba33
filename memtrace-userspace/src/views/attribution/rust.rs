//! Which functions of Rust's libraries only pass a size on.
//!
//! In: a demangled name, of either mangling scheme. Out: yes or no.
//!
//! ```text
//!   <alloc::alloc::Global as core::alloc::Allocator>::allocate      the allocator       yes
//!   <alloc::raw_vec::RawVecInner>::try_allocate_in                  what calls it       yes
//!   alloc::vec::Vec<T,A>::with_capacity_in                          names no size       yes
//!   <alloc::raw_vec::RawVec<u8>>::grow_one                          decides a size      no
//! ```
//!
//! Optimised code has few of these as functions of their own; a debug build calls them all.

use std::borrow::Cow;

/// Functions by the module, type or trait that they belong to.
const FORWARDS: &[(&str, &[&str])] = &[
    ("alloc::alloc", ALLOCATOR),
    ("alloc::boxed", &["box_new", "box_new_uninit"]),
    (
        "alloc::boxed::Box",
        &[
            "new",
            "new_in",
            "new_uninit",
            "new_uninit_in",
            "new_uninit_slice",
            "new_uninit_slice_in",
            "new_zeroed",
            "new_zeroed_in",
            "pin",
            "try_new",
            "try_new_in",
            "try_new_uninit",
            "try_new_uninit_in",
            "try_new_zeroed_in",
        ],
    ),
    ("alloc::collections::vec_deque::VecDeque", CAPACITY),
    ("alloc::raw_vec", &["finish_grow"]),
    ("alloc::raw_vec::RawVec", CAPACITY),
    ("alloc::raw_vec::RawVecInner", CAPACITY),
    ("alloc::raw_vec::RawVecInner", &["finish_grow", "grow_amortized", "try_allocate_in"]),
    ("alloc::rc::Rc", &["allocate_for_layout", "new", "new_uninit", "pin"]),
    ("alloc::string::String", CAPACITY),
    ("alloc::sync::Arc", &["allocate_for_layout", "new", "new_uninit", "pin"]),
    ("alloc::vec", &["from_elem"]),
    ("alloc::vec::Vec", CAPACITY),
    ("alloc::vec::spec_from_elem::SpecFromElem", &["from_elem"]),
    // Whoever implements these is an allocator.
    ("core::alloc::Allocator", ALLOCATOR),
    ("core::alloc::global::GlobalAlloc", ALLOCATOR),
    ("std::alloc::System", ALLOCATOR),
    ("std::sys::alloc", ALLOCATOR),
    ("std::sys::pal::unix::alloc", ALLOCATOR),
];

const ALLOCATOR: &[&str] = &[
    "alloc",
    "alloc_impl",
    "alloc_impl_runtime",
    "alloc_zeroed",
    "aligned_malloc",
    "allocate",
    "allocate_zeroed",
    "box_new",
    "box_new_uninit",
    "dealloc",
    "deallocate",
    "exchange_malloc",
    "grow",
    "grow_impl",
    "grow_impl_runtime",
    "grow_zeroed",
    "realloc",
    "realloc_fallback",
    "shrink",
];

const CAPACITY: &[&str] = &[
    "try_with_capacity",
    "try_with_capacity_in",
    "with_capacity",
    "with_capacity_in",
    "with_capacity_zeroed",
    "with_capacity_zeroed_in",
];

/// Whether a function of Rust's libraries only passes a request on.
pub(super) fn passes_on(name: &str) -> bool {
    if !name.contains("::") {
        return is_entry(name);
    }
    let Path { implementer, implemented } = path(name);
    [Some(implementer), implemented].into_iter().flatten().any(|path| {
        let Some((place, function)) = path.rsplit_once("::") else { return false };
        is_entry(function)
            || FORWARDS
                .iter()
                .any(|(owner, functions)| is_within(place, owner) && functions.contains(&function))
    })
}

/// `__rust_alloc`, `__rdl_realloc`, `__rg_alloc_zeroed`: the compiler's names for the allocator.
fn is_entry(function: &str) -> bool {
    ["__rust_", "__rdl_", "__rg_"]
        .iter()
        .find_map(|prefix| function.strip_prefix(prefix))
        .is_some_and(|rest| matches!(rest, "alloc" | "alloc_zeroed" | "realloc" | "dealloc"))
}

/// Whether `place` is `owner`; modules hold their types and their modules.
fn is_within(place: &str, owner: &str) -> bool {
    let is_module =
        owner.rsplit("::").next().is_some_and(|last| last.starts_with(char::is_lowercase));
    place
        .strip_prefix(owner)
        .is_some_and(|rest| rest.is_empty() || (is_module && rest.starts_with("::")))
}

/// A name without type arguments.
struct Path<'a> {
    /// `Type::function`.
    implementer: Cow<'a, str>,
    /// `Trait::function`, of a trait's method.
    implemented: Option<Cow<'a, str>>,
}

/// Takes `<Type<A> as Trait<B>>::function::<C>` apart.
fn path(name: &str) -> Path<'_> {
    let Some((qualified, rest)) = angle_brackets(name) else {
        return Path { implementer: without_arguments(name), implemented: None };
    };
    let join = |owner: &str| -> Cow<'_, str> {
        format!("{}{}", without_arguments(owner), without_arguments(rest)).into()
    };
    match split_as(qualified) {
        Some((implementer, implemented)) => {
            Path { implementer: join(implementer), implemented: Some(join(implemented)) }
        }
        None => Path { implementer: join(qualified), implemented: None },
    }
}

/// What is between the brackets that `text` begins with, and what is behind them.
fn angle_brackets(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('<')?;
    let mut depth = 1u32;
    let mut before = ' ';
    for (index, c) in inner.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inner[..index], &inner[index + 1..]));
        }
        before = c;
    }
    None
}

/// Splits `Type as Trait`.
fn split_as(qualified: &str) -> Option<(&str, &str)> {
    let mut depth = 0u32;
    let mut before = ' ';
    for (index, c) in qualified.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 && qualified[index..].starts_with(" as ") => {
                return Some((&qualified[..index], &qualified[index + " as ".len()..]));
            }
            _ => {}
        }
        before = c;
    }
    None
}

/// `Vec::with_capacity` of `Vec<T,A>::with_capacity` and of `Vec::with_capacity::<T>`.
fn without_arguments(path: &str) -> Cow<'_, str> {
    if !path.contains('<') {
        return path.into();
    }
    let mut out = String::with_capacity(path.len());
    let mut depth = 0u32;
    let mut before = ' ';
    for c in path.chars() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
        before = c;
    }
    while out.ends_with("::") {
        out.truncate(out.len() - "::".len());
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_size_of_its_own_passes_on() {
        let functions = [
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "alloc::alloc::Global::alloc_impl",
            "alloc::alloc::alloc",
            "<std::alloc::System as core::alloc::global::GlobalAlloc>::alloc",
            "<jemallocator::Jemalloc as core::alloc::global::GlobalAlloc>::realloc",
            "std::sys::alloc::unix::<impl core::alloc::global::GlobalAlloc for std::alloc::System>::alloc",
            "__rustc::__rust_alloc",
            "__rustc[5224e6b81cd82a8f]::__rdl_alloc",
            "<alloc::raw_vec::RawVecInner>::try_allocate_in",
            "alloc::raw_vec::RawVecInner<A>::with_capacity_in",
            "<alloc::raw_vec::RawVecInner<std::alloc::System>>::finish_grow",
            "alloc::raw_vec::finish_grow",
            "alloc::vec::Vec<T>::with_capacity",
            "<alloc::vec::Vec<fn(u8) -> u8>>::with_capacity",
            "alloc::vec::from_elem",
            "alloc::vec::from_elem::<u8>",
            "<u8 as alloc::vec::spec_from_elem::SpecFromElem>::from_elem",
            "alloc::boxed::Box<T>::new",
            "<alloc::boxed::Box<a::Node<b::C>>>::new_uninit_in",
        ];
        for name in functions {
            assert!(passes_on(name), "{name}");
        }
    }

    #[test]
    fn what_decides_a_size_does_not() {
        let functions = [
            "<alloc::raw_vec::RawVec<u8>>::grow_one",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::raw_vec::RawVecInner<_>>::reserve::do_reserve_and_handle::<alloc::alloc::Global>",
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "<alloc::vec::Vec<T> as alloc::vec::spec_from_iter::SpecFromIter<T,I>>::from_iter",
            "alloc::alloc::handle_alloc_error",
            "<shop::Box<u8>>::new",
            "shop::alloc",
            "shop::Arc::new",
            "alloc::boxed::BoxIsh::new",
            "main",
            "<",
            "<a",
            "<a>",
            "::",
        ];
        for name in functions {
            assert!(!passes_on(name), "{name}");
        }
    }
}
