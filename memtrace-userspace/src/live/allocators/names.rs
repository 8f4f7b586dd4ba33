//! The names of allocator functions, and what each one's arguments are.

use memtrace_common::call::{Aligned, Argument, Call, Given};
use memtrace_common::event::Api;

use super::Role;

/// What a symbol's name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) call: Call,
    pub(super) family: Family,
    prefixed: bool,
}

/// Whose function it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// The name by which reports know the API.
    Canonical,
    /// A variation that a C library or an allocator offers.
    Variation,
    /// C++ `operator new` or `operator delete`, or an allocator's function of that kind.
    CxxOperator,
}

impl Name {
    /// The order in which names of one address are preferred; lowest first.
    pub(super) fn rank(self) -> (bool, Family, Option<Api>) {
        (self.prefixed, self.family, self.call.api())
    }

    /// Whether memory comes or goes.
    pub(super) fn role(self) -> Role {
        if self.call.acquires() { Role::Acquire } else { Role::Release }
    }

    /// Whether it is left out if all it does is to call a probed function.
    ///
    /// The C functions that acquire are kept even so (musl's `memalign` is a jump to
    /// `aligned_alloc`): only the outermost call of a thread counts, and it carries the API that
    /// the program called. A release has no return at which nesting could be noticed.
    pub(super) fn may_forward(self) -> bool {
        match self.family {
            Family::CxxOperator => true,
            Family::Variation => self.role() == Role::Release,
            Family::Canonical => false,
        }
    }
}

/// The prefixes under which an allocator is linked into a program beside the C library's.
///
/// jemalloc's in Rust's `tikv-jemallocator` and elsewhere, gperftools' and mimalloc's own.
const PREFIXES: [&str; 4] = ["_rjem_", "je_", "tc_", "mi_"];

/// The mangled names of the four operators.
const OPERATORS: [(&str, Api); 4] =
    [("_Znwm", Api::New), ("_Znam", Api::New), ("_ZdlPv", Api::Delete), ("_ZdaPv", Api::Delete)];

/// What `symbol` names, if it names an allocator's function.
pub(super) fn classify(symbol: &str) -> Option<Name> {
    let name = |(call, family), prefixed| Name { call, family, prefixed };
    if let Some(operator) = operator(symbol) {
        return Some(name(operator, false));
    }
    if let Some(known) = classify_c(symbol) {
        return Some(name(known, false));
    }
    let (prefix, rest) =
        PREFIXES.iter().find_map(|prefix| Some((*prefix, symbol.strip_prefix(prefix)?)))?;
    let own = match prefix {
        "tc_" => classify_gperftools(rest),
        "mi_" => classify_mimalloc(rest),
        _ => None,
    };
    own.or_else(|| classify_c(rest)).map(|known| name(known, true))
}

const A0: Argument = Argument::new(0).expect("in a register");
const A1: Argument = Argument::new(1).expect("in a register");
const A2: Argument = Argument::new(2).expect("in a register");
const A3: Argument = Argument::new(3).expect("in a register");
const A4: Argument = Argument::new(4).expect("in a register");

/// A function that returns memory of `size` bytes.
const fn gives(api: Api, size: Argument) -> Call {
    Call::Acquire { api, size, times: None, block: None, given: Given::Returned, alignment: None }
}

/// A function that returns memory of `size` × `times` bytes.
const fn gives_array(api: Api, times: Argument, size: Argument) -> Call {
    Call::Acquire {
        api,
        size,
        times: Some(times),
        block: None,
        given: Given::Returned,
        alignment: None,
    }
}

/// A function that takes `block` and returns memory of `size` bytes.
const fn exchanges(api: Api, block: Argument, size: Argument) -> Call {
    Call::Acquire {
        api,
        size,
        times: None,
        block: Some(block),
        given: Given::Returned,
        alignment: None,
    }
}

/// A function that takes `block` and returns memory of `size` × `times` bytes.
const fn exchanges_array(api: Api, block: Argument, times: Argument, size: Argument) -> Call {
    Call::Acquire {
        api,
        size,
        times: Some(times),
        block: Some(block),
        given: Given::Returned,
        alignment: None,
    }
}

/// The same function, which is told how to align the block.
const fn aligned(call: Call, to: Aligned) -> Call {
    match call {
        Call::Acquire { api, size, times, block, given, alignment: _ } => {
            Call::Acquire { api, size, times, block, given, alignment: Some(to) }
        }
        other => other,
    }
}

/// A function that takes `block` back.
const fn takes(api: Api, block: Argument) -> Call {
    Call::Release { api, block }
}

fn classify_c(name: &str) -> Option<(Call, Family)> {
    use Family::{Canonical, Variation};
    Some(match name {
        "malloc" => (gives(Api::Malloc, A0), Canonical),
        "calloc" => (gives_array(Api::Calloc, A0, A1), Canonical),
        "realloc" => (exchanges(Api::Realloc, A0, A1), Canonical),
        "reallocarray" => (exchanges_array(Api::Reallocarray, A0, A1, A2), Canonical),
        "posix_memalign" => (
            Call::Acquire {
                api: Api::PosixMemalign,
                size: A2,
                times: None,
                block: None,
                given: Given::Through(A0),
                alignment: Some(Aligned::Bytes(A1)),
            },
            Canonical,
        ),
        "aligned_alloc" => (aligned(gives(Api::AlignedAlloc, A1), Aligned::Bytes(A0)), Canonical),
        "memalign" => (aligned(gives(Api::Memalign, A1), Aligned::Bytes(A0)), Canonical),
        "valloc" => (aligned(gives(Api::Valloc, A0), Aligned::ToPage), Canonical),
        "pvalloc" => (aligned(gives(Api::Pvalloc, A0), Aligned::ToPage), Canonical),
        "free" => (takes(Api::Free, A0), Canonical),
        // glibc's and C23's; the sizes behind the pointer are not read.
        "cfree" | "free_sized" | "free_aligned_sized" => (takes(Api::Free, A0), Variation),
        // jemalloc's, each counted as the API that it is nearest to.
        "mallocx" => (aligned(gives(Api::Malloc, A0), Aligned::LowBits(A1)), Variation),
        "rallocx" => (aligned(exchanges(Api::Realloc, A0, A1), Aligned::LowBits(A2)), Variation),
        "xallocx" => (
            Call::Acquire {
                api: Api::Realloc,
                size: A1,
                times: None,
                block: Some(A0),
                given: Given::InPlace(A2),
                alignment: Some(Aligned::LowBits(A3)),
            },
            Variation,
        ),
        "dallocx" | "sdallocx" => (takes(Api::Free, A0), Variation),
        _ => return None,
    })
}

/// gperftools' own names, without their prefix.
fn classify_gperftools(name: &str) -> Option<(Call, Family)> {
    Some(match name {
        "new" | "newarray" | "new_nothrow" | "newarray_nothrow" => of_operator(Api::New),
        "new_aligned" | "newarray_aligned" | "new_aligned_nothrow" | "newarray_aligned_nothrow" => {
            aligned_operator()
        }
        "delete"
        | "deletearray"
        | "delete_nothrow"
        | "deletearray_nothrow"
        | "delete_sized"
        | "deletearray_sized"
        | "delete_aligned"
        | "deletearray_aligned"
        | "delete_sized_aligned"
        | "deletearray_sized_aligned"
        | "delete_aligned_nothrow"
        | "deletearray_aligned_nothrow" => of_operator(Api::Delete),
        "malloc_skip_new_handler" => (gives(Api::Malloc, A0), Family::Variation),
        _ => return None,
    })
}

/// mimalloc's own names, without their prefix.
///
/// The functions that take a heap are those that the others call; with an argument more in front.
fn classify_mimalloc(name: &str) -> Option<(Call, Family)> {
    use Family::Variation;
    let (name, [a0, a1, a2, a3]) = match name.strip_prefix("heap_") {
        // It makes a heap.
        Some("new") => return None,
        Some(name) => (name, [A1, A2, A3, A4]),
        None => (name, [A0, A1, A2, A3]),
    };
    // Where the block is to lie is told behind the other arguments, or in front in C's functions.
    let plain = name.strip_suffix("_at").unwrap_or(name);
    let plain = plain.strip_suffix("_aligned").unwrap_or(plain);
    let is_aligned = plain.len() < name.len() || name == "new_aligned_nothrow";
    let api = |usual| if is_aligned { Api::AlignedAlloc } else { usual };
    let (call, family) = match plain {
        "malloc" | "malloc_small" => (gives(api(Api::Malloc), a0), Variation),
        "zalloc" | "zalloc_small" => (gives(api(Api::Calloc), a0), Variation),
        "calloc" => (gives_array(api(Api::Calloc), a0, a1), Variation),
        "mallocn" => (gives_array(api(Api::Malloc), a0, a1), Variation),
        // `expand` leaves the block where it is, and returns NULL if it is too small.
        "realloc" | "rezalloc" | "reallocf" | "expand" => {
            (exchanges(Api::Realloc, a0, a1), Variation)
        }
        "reallocn" | "recalloc" => (exchanges_array(Api::Reallocarray, a0, a1, a2), Variation),
        "new" | "new_nothrow" | "new_aligned_nothrow" | "alloc_new" => {
            (gives(Api::New, a0), Family::CxxOperator)
        }
        "new_n" | "alloc_new_n" => (gives_array(Api::New, a0, a1), Family::CxxOperator),
        "new_realloc" => (exchanges(Api::Realloc, a0, a1), Family::CxxOperator),
        "new_reallocn" => (exchanges_array(Api::Reallocarray, a0, a1, a2), Family::CxxOperator),
        "free" | "free_size" | "free_size_aligned" => (takes(Api::Free, a0), Variation),
        _ => return None,
    };
    // The alignment follows the argument that the size is in, or that there are so many of.
    let behind = match call {
        Call::Acquire { size, times, .. } => [a0, a1, a2, a3]
            .into_iter()
            .find(|argument| *argument > size.max(times.unwrap_or(size))),
        Call::Release { .. } | Call::Ignore => None,
    };
    Some(match behind {
        Some(behind) if is_aligned => (aligned(call, Aligned::Bytes(behind)), family),
        Some(_) | None => (call, family),
    })
}

/// Whether `symbol` is `operator new` or `operator delete`, in whichever form.
fn operator(symbol: &str) -> Option<(Call, Family)> {
    let (api, form) = OPERATORS
        .iter()
        .find_map(|(operator, api)| Some((*api, symbol.strip_prefix(operator)?)))?;
    // `operator delete` may know the size.
    let form = if api == Api::Delete { form.strip_prefix('m').unwrap_or(form) } else { form };
    match form {
        "" | "RKSt9nothrow_t" => Some(of_operator(api)),
        "St11align_val_t" | "St11align_val_tRKSt9nothrow_t" if api == Api::New => {
            Some(aligned_operator())
        }
        "St11align_val_t" | "St11align_val_tRKSt9nothrow_t" => Some(of_operator(api)),
        _ => None,
    }
}

/// Whether a function that gives memory may throw an exception instead, by its name.
///
/// A name that is no allocator's is the user's, and then nothing is known.
pub(super) fn may_throw(symbol: &str) -> bool {
    match classify(symbol) {
        Some(name) => name.family == Family::CxxOperator && !symbol.contains("nothrow"),
        None => true,
    }
}

/// Whether a function of this name starts to unwind the stack (the C++ ABI, which Rust uses too).
pub(super) fn unwinds(symbol: &str) -> bool {
    matches!(
        symbol,
        "_Unwind_RaiseException" | "_Unwind_Resume_or_Rethrow" | "_Unwind_ForcedUnwind"
    )
}

/// Whether a function of this name ends the process, with all its threads: what `exit` and a `main`
/// that returns come to.
pub(super) fn ends(symbol: &str) -> bool {
    matches!(symbol, "_exit" | "_Exit")
}

/// What the operators do: each of them takes the size or the block first.
fn of_operator(api: Api) -> (Call, Family) {
    let call = if api == Api::New { gives(api, A0) } else { takes(api, A0) };
    (call, Family::CxxOperator)
}

/// `operator new` that takes an alignment behind the size.
fn aligned_operator() -> (Call, Family) {
    (aligned(gives(Api::New, A0), Aligned::Bytes(A1)), Family::CxxOperator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(symbol: &str) -> Option<Api> {
        classify(symbol).and_then(|name| name.call.api())
    }

    #[test]
    fn every_form_of_the_operators_is_known() {
        let new = ["_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZnamSt11align_val_tRKSt9nothrow_t"];
        let delete = ["_ZdlPv", "_ZdaPvm", "_ZdlPvmSt11align_val_t", "_ZdaPvRKSt9nothrow_t"];

        assert!(new.iter().all(|symbol| api(symbol) == Some(Api::New)));
        assert!(delete.iter().all(|symbol| api(symbol) == Some(Api::Delete)));
    }

    #[test]
    fn placement_new_and_methods_are_no_operators_of_the_allocator() {
        assert_eq!(api("_ZnwmPv"), None);
        assert_eq!(api("_ZN3FoonwEm"), None);
    }

    #[test]
    fn names_that_only_contain_an_allocators_name_are_not_one() {
        for symbol in ["xdr_free", "malloc_usable_size", "__libc_malloc", "free.cold", "je_", ""] {
            assert_eq!(api(symbol), None, "{symbol}");
        }
    }

    #[test]
    fn prefixed_jemalloc_is_known() {
        assert_eq!(api("_rjem_malloc"), Some(Api::Malloc));
        assert_eq!(api("_rjem_sdallocx"), Some(Api::Free));
        assert_eq!(api("je_realloc"), Some(Api::Realloc));
        assert_eq!(api("je_xallocx"), Some(Api::Realloc));
    }

    #[test]
    fn mimallocs_own_functions_are_known() {
        let call = |symbol| classify(symbol).map(|name| name.call);

        assert_eq!(call("mi_zalloc"), Some(gives(Api::Calloc, A0)));
        let aligned = |call, argument| Some(aligned(call, Aligned::Bytes(argument)));
        assert_eq!(call("mi_malloc_aligned"), aligned(gives(Api::AlignedAlloc, A0), A1));
        assert_eq!(call("mi_heap_malloc_aligned_at"), aligned(gives(Api::AlignedAlloc, A1), A2));
        assert_eq!(call("mi_realloc_aligned"), aligned(exchanges(Api::Realloc, A0, A1), A2));
        assert_eq!(call("mi_new_aligned_nothrow"), aligned(gives(Api::New, A0), A1));
        let recalloc = exchanges_array(Api::Reallocarray, A1, A2, A3);
        assert_eq!(call("mi_heap_recalloc_aligned"), aligned(recalloc, A4));
        assert_eq!(call("mi_expand"), Some(exchanges(Api::Realloc, A0, A1)));
        assert_eq!(call("mi_free_size_aligned"), Some(takes(Api::Free, A0)));
        // C's order: the alignment first.
        assert_eq!(call("mi_aligned_alloc"), aligned(gives(Api::AlignedAlloc, A1), A0));
        for symbol in ["mi_usable_size", "mi_heap_new", "mi_malloc_size", "mi_option_get"] {
            assert_eq!(call(symbol), None, "{symbol}");
        }
    }

    #[test]
    fn functions_that_align_say_where_they_are_told_to_what() {
        let alignment = |symbol| match classify(symbol).map(|name| name.call) {
            Some(Call::Acquire { alignment, .. }) => alignment,
            _ => None,
        };

        for symbol in ["posix_memalign", "_ZnwmSt11align_val_t", "tc_new_aligned", "tc_malloc"] {
            let expected = (symbol != "tc_malloc").then_some(Aligned::Bytes(A1));
            assert_eq!(alignment(symbol), expected, "{symbol}");
        }
        for symbol in ["aligned_alloc", "memalign", "je_memalign", "tc_memalign"] {
            assert_eq!(alignment(symbol), Some(Aligned::Bytes(A0)), "{symbol}");
        }
        assert_eq!(alignment("pvalloc"), Some(Aligned::ToPage));
        assert_eq!(alignment("_rjem_mallocx"), Some(Aligned::LowBits(A1)));
        assert_eq!(alignment("rallocx"), Some(Aligned::LowBits(A2)));
        assert_eq!(alignment("_Znwm"), None);
    }

    #[test]
    fn gperftools_own_functions_are_known() {
        assert_eq!(api("tc_malloc"), Some(Api::Malloc));
        assert_eq!(api("tc_newarray_aligned"), Some(Api::New));
        assert_eq!(api("tc_deletearray_sized"), Some(Api::Delete));
        assert_eq!(api("tc_malloc_size"), None);
    }
}
