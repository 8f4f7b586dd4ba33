//! How a function is called in the JSON report, wherever it has numbers.

use serde::Serialize;

use crate::views::frames::Function;

/// A function and a line in it.
#[derive(Serialize)]
pub(super) struct Named<'r> {
    function: Option<&'r str>,
    module: Option<&'r str>,
    file: Option<&'r str>,
    line: Option<u32>,
}

/// All of it is null for a function that is not known.
pub(super) fn name(function: Option<&Function>, line: Option<u32>) -> Named<'_> {
    Named {
        function: function.and_then(|function| function.name.as_deref()),
        module: function.map(|function| &*function.module),
        file: function.and_then(|function| function.file.as_deref()),
        line,
    }
}
