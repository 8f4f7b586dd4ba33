//! Who allocated: which frame of a stack is charged as `self`.
//!
//! The innermost frames of a stack are often the allocator's own and the language runtime's
//! wrappers. They are skipped, and the first frame that is neither is the allocating function:
//!
//! ```text
//!   operator new(unsigned long)                      libstdc++   wrapper
//!   std::__new_allocator<int>::allocate(…)           inlined     wrapper
//!   std::vector<int>::_M_realloc_insert(…)           a.out       <- self: the growth is visible
//!   fill()                                           a.out          total
//!   main                                             a.out          total
//! ```
//!
//! Two rules. A function that only forwards a size to the allocator is a wrapper, by its name; what
//! grows a container (`std::vector`, `RawVec`) is none, because a reader can do something about it.
//! And a frame that is inlined from the source of a language's library is never charged, whatever
//! its name: the optimiser put it into the function that asked, and without full debug information
//! such frames have no names to go by (`alloc`, `new<Session>`).

mod rust;

use crate::symbols::without_clone;

/// A frame as the rule sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate<'a> {
    /// The function, demangled; `None` if it has no name.
    pub function: Option<&'a str>,
    /// What tells modules apart.
    pub module: &'a str,
    /// The source file that an inlined frame comes from; `None` for a function of its own.
    pub inlined_from: Option<&'a str>,
}

/// Index of the frame that allocated, in `frames` from the innermost outwards.
///
/// `first frame that is no wrapper`, with one refinement: nameless frames that a wrapper of their
/// own module called are the allocator's inside (Debian's libc names only what it exports). A
/// stack of wrappers alone is charged to its outermost frame. `None` only for no frames.
pub(super) fn allocating_frame<'a>(
    frames: impl IntoIterator<Item = Candidate<'a>>,
) -> Option<usize> {
    let mut outermost = None;
    let mut nameless: Option<(usize, &str)> = None;
    for (index, frame) in frames.into_iter().enumerate() {
        outermost = Some(index);
        if frame.inlined_from.is_some_and(is_library_source) {
            continue;
        }
        match (frame.function, nameless) {
            (None, None) => nameless = Some((index, frame.module)),
            (None, Some((_, module))) if module == frame.module => {}
            (Some(name), None) if is_wrapper(name, frame.module) => {}
            (Some(name), Some((_, module)))
                if module == frame.module && is_wrapper(name, module) =>
            {
                nameless = None;
            }
            (Some(_), None) => return Some(index),
            (_, Some((start, _))) => return Some(start),
        }
    }
    nameless.map(|(start, _)| start).or(outermost)
}

/// Whether a function only passes a request on to the allocator, or is the allocator.
///
/// `module` is the path of its file: some of the C library's names are too common to mean the
/// allocator anywhere else.
pub(super) fn is_wrapper(function: &str, module: &str) -> bool {
    let name = without_decoration(function);
    is_plt_stub(function)
        || ALLOCATOR.binary_search(&name).is_ok()
        || (is_c_library(module) && C_LIBRARY_INSIDE.binary_search(&name).is_ok())
        || RUNTIMES.binary_search(&name).is_ok()
        || ALLOCATOR_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || is_operator_new_or_delete(name)
        || is_cpp_allocator(name)
        || rust::passes_on(name)
}

/// Functions of the C library's allocators and the C wrappers of the memory system calls.
const ALLOCATOR: &[&str] = &[
    "__brk",
    "__calloc",
    "__free",
    "__libc_calloc",
    "__libc_free",
    "__libc_malloc",
    "__libc_malloc_impl",
    "__libc_memalign",
    "__libc_pvalloc",
    "__libc_realloc",
    "__libc_reallocarray",
    "__libc_valloc",
    "__malloc",
    "__mmap",
    "__mmap64",
    "__mprotect",
    "__mremap",
    "__munmap",
    "__posix_memalign",
    "__realloc",
    "__sbrk",
    "_int_free",
    "_int_malloc",
    "_int_memalign",
    "_int_realloc",
    "_mid_memalign",
    "aligned_alloc",
    "brk",
    "calloc",
    "cfree",
    "free",
    "malloc",
    "memalign",
    "mmap",
    "mmap64",
    "mprotect",
    "mremap",
    "munmap",
    "pkey_mprotect",
    "posix_memalign",
    "pvalloc",
    "realloc",
    "reallocarray",
    "sbrk",
    "syscall",
    "valloc",
];

/// Functions inside the C library's allocator, glibc's and musl's.
const C_LIBRARY_INSIDE: &[&str] = &[
    "__default_morecore",
    "__expand_heap",
    "__glibc_morecore",
    "__malloc_alloc_meta",
    "_int_new_arena",
    "alloc_group",
    "alloc_new_heap",
    "alloc_slot",
    "arena_get2",
    "arena_get_retry",
    "grow_heap",
    "heap_trim",
    "malloc_consolidate",
    "malloc_hook_ini",
    "mremap_chunk",
    "munmap_chunk",
    "new_heap",
    "ptmalloc_init",
    "shrink_heap",
    "sysmalloc",
    "sysmalloc_mmap",
    "sysmalloc_mmap_fallback",
    "systrim",
    "tcache_init",
    "tcache_key_initialize",
];

/// What CPython, Perl, Ruby and GLib have between their code and `malloc`.
///
/// The functions with which CPython maps arenas are not among them: an arena is memory of its own.
const RUNTIMES: &[&str] = &[
    "Perl_safesyscalloc",
    "Perl_safesysmalloc",
    "Perl_safesysrealloc",
    "PyMem_Calloc",
    "PyMem_Malloc",
    "PyMem_RawCalloc",
    "PyMem_RawMalloc",
    "PyMem_RawRealloc",
    "PyMem_Realloc",
    "PyObject_Calloc",
    "PyObject_Malloc",
    "PyObject_Realloc",
    "_PyMem_RawCalloc",
    "_PyMem_RawMalloc",
    "_PyMem_RawRealloc",
    "_PyObject_Calloc",
    "_PyObject_Malloc",
    "_PyObject_Realloc",
    "g_malloc",
    "g_malloc0",
    "g_malloc0_n",
    "g_malloc_n",
    "g_realloc",
    "g_realloc_n",
    "g_try_malloc",
    "g_try_malloc0",
    "g_try_realloc",
    "objspace_xcalloc",
    "objspace_xmalloc0",
    "objspace_xrealloc",
    "ruby_xcalloc",
    "ruby_xmalloc",
    "ruby_xmalloc2",
    "ruby_xrealloc",
    "ruby_xrealloc2",
];

/// Whether a file is the C library or its loader, by its name.
fn is_c_library(module: &str) -> bool {
    let file = module.rsplit('/').next().unwrap_or(module);
    ["libc.", "libc-", "ld-linux", "ld-musl", "ld-2."].iter().any(|start| file.starts_with(start))
}

/// What the functions of jemalloc, mimalloc and tcmalloc start with, and V8's names for system calls.
const ALLOCATOR_PREFIXES: &[&str] = &["_mi_", "je_", "mi_", "tc_", "tcmalloc::", "v8::base::OS::"];

/// A procedure linkage table entry, as symbolizers name it: `malloc@plt`.
fn is_plt_stub(function: &str) -> bool {
    function.ends_with("@plt")
}

/// Only the global ones: `Arena::operator new(unsigned long)` is the program's own.
fn is_operator_new_or_delete(name: &str) -> bool {
    name.strip_prefix("operator new")
        .or_else(|| name.strip_prefix("operator delete"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['(', '[']))
}

/// The default allocators of libstdc++ and libc++, which forward to `operator new`.
fn is_cpp_allocator(name: &str) -> bool {
    const TYPES: &[&str] = &[
        "__gnu_cxx::__alloc_traits<",
        "__gnu_cxx::new_allocator<",
        "std::__1::allocator<",
        "std::__1::allocator_traits<",
        "std::__allocator_traits_base",
        "std::__new_allocator<",
        "std::allocator<",
        "std::allocator_traits<",
    ];
    const FUNCTIONS: &[&str] = &[
        "std::__1::__allocate_at_least",
        "std::__1::__libcpp_allocate",
        "std::__1::__libcpp_operator_new",
    ];
    const METHODS: &[&str] = &["allocate", "allocate_at_least", "deallocate"];
    let name = without_return_type(name);
    FUNCTIONS.iter().any(|prefix| name.starts_with(prefix))
        || (TYPES.iter().any(|prefix| name.starts_with(prefix))
            && method(name).is_some_and(|method| METHODS.contains(&method)))
}

/// Whether a source file belongs to a language's own library.
///
/// Rust's is `/rustc/<hash>/library/…` as distributed, `…/rustlib/src/rust/library/…` where its
/// source is installed, `/usr/src/rustc-1.96/library/…` as Debian builds it, and `/rust/deps/…`
/// for crates that went into it.
fn is_library_source(file: &str) -> bool {
    let is_rust = |root: &str| {
        file.strip_prefix(root)
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_version, rest)| rest.starts_with("library/"))
    };
    is_rust("/rustc/")
        || is_rust("/usr/src/rustc-")
        || file.starts_with("/rust/deps/")
        || file.contains("/rustlib/src/rust/library/")
        || file.contains("/include/c++/")
}

/// The name without what is put around it: glibc's `__GI_`, versions, clones, Rust's hash.
pub(super) fn without_decoration(name: &str) -> &str {
    let name = name.strip_prefix("__GI_").unwrap_or(name);
    let name = without_clone(name.split('@').next().unwrap_or(name));
    match name.rsplit_once("::h") {
        Some((start, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            start
        }
        _ => name,
    }
}

/// `void* f<int>(int)` without `void* `: demanglers write the result of template functions.
fn without_return_type(name: &str) -> &str {
    let mut depth = 0u32;
    for (index, c) in name.char_indices() {
        match c {
            '<' | '(' => depth += 1,
            '>' | ')' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 => {
                let rest = &name[index + 1..];
                return if rest.starts_with('[') { name } else { rest };
            }
            _ => {}
        }
    }
    name
}

/// The last part of a C++ name, without template and call arguments.
fn method(name: &str) -> Option<&str> {
    let mut depth = 0u32;
    let mut start = 0;
    let mut end = name.len();
    for (index, c) in name.char_indices() {
        match c {
            '(' | '[' if depth == 0 => {
                end = index;
                break;
            }
            '<' | '(' => depth += 1,
            '>' | ')' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => start = index + 1,
            _ => {}
        }
    }
    name.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charged(frames: &[(Option<&str>, &str)]) -> Option<usize> {
        allocating_frame(frames.iter().map(|&(function, module)| Candidate {
            function,
            module,
            inlined_from: None,
        }))
    }

    #[test]
    fn direct_caller_of_malloc_is_charged() {
        assert_eq!(charged(&[(Some("leak"), "a"), (Some("main"), "a")]), Some(0));
    }

    #[test]
    fn operator_new_is_skipped() {
        let stack = [(Some("operator new(unsigned long)"), "libstdc++"), (Some("main"), "a")];

        assert_eq!(charged(&stack), Some(1));
    }

    #[test]
    fn way_of_an_interpreter_to_malloc_is_skipped() {
        let stack = [
            (Some("_PyMem_RawMalloc"), "python3.11"),
            (Some("PyObject_Malloc"), "python3.11"),
            (Some("PyUnicode_New"), "python3.11"),
        ];

        assert_eq!(charged(&stack), Some(2));
    }

    #[test]
    fn arena_of_an_interpreter_is_charged() {
        let stack = [
            (Some("mmap"), "libc"),
            (Some("_PyObject_ArenaMmap"), "python3.11"),
            (Some("PyObject_Malloc"), "python3.11"),
        ];

        assert_eq!(charged(&stack), Some(1));
    }

    #[test]
    fn vector_growth_is_charged() {
        let stack = [
            (Some("operator new(unsigned long)"), "libstdc++"),
            (Some("std::__new_allocator<int>::allocate(unsigned long, void const*)"), "a"),
            (Some("std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int&&)"), "a"),
            (Some("main"), "a"),
        ];

        assert_eq!(charged(&stack), Some(2));
    }

    #[test]
    fn frame_inlined_from_a_languages_library_is_not_charged() {
        let files = [
            "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/alloc/src/alloc.rs",
            "/usr/src/rustc-1.96.0/library/alloc/src/alloc.rs",
            "/home/a/.rustup/toolchains/stable/lib/rustlib/src/rust/library/alloc/src/alloc.rs",
            "/rust/deps/hashbrown-0.16.1/src/raw.rs",
            "/usr/include/c++/12/bits/stl_vector.h",
            "/usr/lib/gcc/x86_64-linux-gnu/12/../../../../include/c++/12/bits/stl_vector.h",
            "/usr/lib/llvm-14/bin/../include/c++/v1/vector",
        ];
        for file in files {
            let frame = |function, inlined_from| Candidate {
                function: Some(function),
                module: "a",
                inlined_from,
            };

            let stack = [frame("alloc", Some(file)), frame("leak", None), frame("main", None)];
            assert_eq!(allocating_frame(stack), Some(1), "{file}");
        }
    }

    #[test]
    fn frame_inlined_from_the_program_is_charged() {
        for file in ["/srv/app/src/cache.rs", "/rustc/app.rs", "/srv/library/alloc.rs"] {
            let inlined = Candidate { function: Some("f"), module: "a", inlined_from: Some(file) };

            assert_eq!(allocating_frame([inlined]), Some(0), "{file}");
        }
    }

    #[test]
    fn nameless_caller_is_charged() {
        assert_eq!(charged(&[(None, "a"), (Some("main"), "a")]), Some(0));
    }

    #[test]
    fn nameless_frames_between_wrappers_are_the_allocators_inside() {
        let stack = [
            (Some("mmap"), "libc"),
            (None, "libc"),
            (None, "libc"),
            (Some("malloc"), "libc"),
            (Some("main"), "a"),
        ];

        assert_eq!(charged(&stack), Some(4));
    }

    #[test]
    fn nameless_frames_of_another_module_are_charged() {
        let stack = [(Some("mmap"), "libc"), (None, "plugin"), (Some("malloc"), "libc")];

        assert_eq!(charged(&stack), Some(1));
    }

    #[test]
    fn nameless_frames_before_the_programs_code_are_charged() {
        assert_eq!(
            charged(&[(Some("mmap"), "libc"), (None, "libc"), (Some("f"), "libc")]),
            Some(1)
        );
        assert_eq!(charged(&[(Some("mmap"), "libc"), (None, "libc")]), Some(1));
    }

    #[test]
    fn stack_of_wrappers_is_charged_to_its_outermost_frame() {
        assert_eq!(charged(&[(Some("malloc"), "libc"), (Some("calloc"), "libc")]), Some(1));
        assert_eq!(charged(&[]), None);
    }

    #[test]
    fn allocator_table_is_sorted_for_the_search() {
        assert!(ALLOCATOR.is_sorted());
        assert!(C_LIBRARY_INSIDE.is_sorted());
        assert!(RUNTIMES.is_sorted());
    }

    #[test]
    fn wrappers_are_recognised() {
        let wrappers = [
            "malloc",
            "malloc@plt",
            "printf@plt",
            "malloc@@GLIBC_2.2.5",
            "calloc.part.0",
            "_int_realloc",
            "__GI___libc_malloc",
            "__GI___sbrk",
            "sysmalloc",
            "alloc_new_heap.part.0",
            "je_arena_malloc_hard",
            "mi_heap_malloc",
            "tc_newarray",
            "__mprotect",
            "v8::base::OS::SetPermissions(void*, unsigned long, v8::base::OS::MemoryPermission)",
            "operator new(unsigned long)",
            "operator new[](unsigned long, std::align_val_t)",
            "operator new",
            "operator delete(void*, unsigned long)",
            "std::allocator<char>::allocate(unsigned long)",
            "std::allocator_traits<std::allocator<int> >::allocate(std::allocator<int>&, unsigned long)",
            "__gnu_cxx::new_allocator<std::pair<int const, a::b> >::allocate(unsigned long, void const*)",
            "std::__1::allocator<int>::allocate[abi:v160006](unsigned long)",
            "void* std::__1::__libcpp_operator_new[abi:v160006]<unsigned long>(unsigned long)",
            "__rust_alloc",
            "__rustc::__rust_alloc",
            "__rustc[5224e6b81cd82a8f]::__rdl_alloc",
            "std::alloc::__default_lib_allocator::__rdl_realloc",
            "alloc::alloc::alloc",
            "alloc::alloc::exchange_malloc",
            "alloc::alloc::Global::alloc_impl",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "<std::alloc::System as core::alloc::global::GlobalAlloc>::alloc",
            "std::sys::alloc::unix::<impl core::alloc::global::GlobalAlloc for std::alloc::System>::alloc",
            "alloc::alloc::exchange_malloc::h0123456789abcdef",
        ];
        for name in wrappers {
            assert!(is_wrapper(name, "/lib/libc.so.6"), "{name}");
        }
    }

    #[test]
    fn user_visible_code_is_not_a_wrapper() {
        let code = [
            "main",
            "malloc.coldStart",
            "xmalloc",
            "new_heap",
            "alloc_slot",
            "mallocator",
            "my_malloc",
            "jemalloc_stats",
            "_dl_new_object",
            "_dl_map_object",
            "__libc_start_main",
            "Arena::operator new(unsigned long)",
            "operator newline(int)",
            "std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int&&)",
            "std::_Vector_base<int, std::allocator<int> >::_M_allocate(unsigned long)",
            "std::allocator<int>::allocator()",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "alloc::alloc::handle_alloc_error",
            "__rust_begin_short_backtrace",
            "std::sys::backtrace::__rust_begin_short_backtrace",
            "game::alloc",
            "void fill<std::allocator<int> >(int)",
        ];
        for name in code {
            assert!(!is_wrapper(name, "/srv/app"), "{name}");
        }
    }
}
