//! The names of allocator functions, and what each one's arguments are.

use memtrace_common::event::Api;

use super::Role;
use crate::live::placement::Need;

/// What a symbol's name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) api: Api,
    pub(super) family: Family,
    arguments: u8,
    prefixed: bool,
}

/// Whose function it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// The name by which reports know the API.
    Canonical,
    /// A variation that a C library or jemalloc offers.
    Variation,
    /// C++ `operator new` or `operator delete`.
    CxxOperator,
}

impl Name {
    /// The order in which names of one address are preferred; lowest first.
    pub(super) fn rank(self) -> (bool, Family, Api) {
        (self.prefixed, self.family, self.api)
    }

    /// Whether memory comes or goes.
    pub(super) fn role(self) -> Role {
        if self.api.acquires_block() { Role::Acquire } else { Role::Release }
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
const PREFIXES: [&str; 2] = ["_rjem_", "je_"];

/// The mangled names of the four operators.
const OPERATORS: [(&str, Api); 4] =
    [("_Znwm", Api::New), ("_Znam", Api::New), ("_ZdlPv", Api::Delete), ("_ZdaPv", Api::Delete)];

/// What `symbol` names, if it names an allocator's function.
pub(super) fn classify(symbol: &str) -> Option<Name> {
    if let Some(name) = classify_operator(symbol) {
        return Some(name);
    }
    let unprefixed = PREFIXES.iter().find_map(|prefix| symbol.strip_prefix(prefix));
    let (api, family, arguments) = classify_c(unprefixed.unwrap_or(symbol))?;
    Some(Name { api, family, arguments, prefixed: unprefixed.is_some() })
}

/// The arguments of the function `symbol`, which [`classify`] knows.
pub(super) fn need(symbol: &str) -> Need {
    // Of an unknown function, nothing may be clobbered.
    Need { arguments: classify(symbol).map_or(6, |name| name.arguments) }
}

fn classify_c(name: &str) -> Option<(Api, Family, u8)> {
    use Family::{Canonical, Variation};
    Some(match name {
        "malloc" => (Api::Malloc, Canonical, 1),
        "calloc" => (Api::Calloc, Canonical, 2),
        "realloc" => (Api::Realloc, Canonical, 2),
        "reallocarray" => (Api::Reallocarray, Canonical, 3),
        "posix_memalign" => (Api::PosixMemalign, Canonical, 3),
        "aligned_alloc" => (Api::AlignedAlloc, Canonical, 2),
        "memalign" => (Api::Memalign, Canonical, 2),
        "valloc" => (Api::Valloc, Canonical, 1),
        "pvalloc" => (Api::Pvalloc, Canonical, 1),
        "free" => (Api::Free, Canonical, 1),
        // glibc's and C23's; the sizes behind the pointer are not read.
        "cfree" | "free_sized" | "free_aligned_sized" => (Api::Free, Variation, 1),
        // jemalloc's, each with the leading arguments of the API it is counted as.
        "mallocx" => (Api::Malloc, Variation, 1),
        "rallocx" => (Api::Realloc, Variation, 2),
        "dallocx" | "sdallocx" => (Api::Free, Variation, 1),
        _ => return None,
    })
}

fn classify_operator(symbol: &str) -> Option<Name> {
    let (api, form) = OPERATORS
        .iter()
        .find_map(|(operator, api)| Some((*api, symbol.strip_prefix(operator)?)))?;
    // `operator delete` may know the size.
    let form = if api == Api::Delete { form.strip_prefix('m').unwrap_or(form) } else { form };
    match form {
        "" | "RKSt9nothrow_t" | "St11align_val_t" | "St11align_val_tRKSt9nothrow_t" => {
            Some(Name { api, family: Family::CxxOperator, arguments: 1, prefixed: false })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(symbol: &str) -> Option<Api> {
        classify(symbol).map(|name| name.api)
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
    }
}
