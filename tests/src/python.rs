//! Pythons that are newer than Debian's, if the machine has any.

use std::path::PathBuf;
use std::process::Command;

/// One that names its functions in a perf map, with `-X perf`: 3.12 or later.
pub fn with_perf_map() -> Option<PathBuf> {
    find("hasattr(sys, 'activate_stack_trampoline')")
}

/// One that describes them in a dump as well, with `-X perf_jit`: 3.13 or later.
pub fn with_jit_dump() -> Option<PathBuf> {
    find("hasattr(sys, 'activate_stack_trampoline') and sys.version_info >= (3, 13)")
}

/// The first for which a question about `sys` holds: Debian's, or one of pyenv's.
fn find(question: &str) -> Option<PathBuf> {
    let mut pythons = vec![PathBuf::from("/usr/bin/python3")];
    let versions = std::env::home_dir()?.join(".pyenv/versions");
    let installed = std::fs::read_dir(versions).into_iter().flatten().flatten();
    pythons.extend(installed.map(|version| version.path().join("bin/python")));
    let question = format!("import sys; sys.exit(not ({question}))");
    pythons.into_iter().find(|python| {
        let status = Command::new(python).args(["-c", &question]).status();
        status.is_ok_and(|status| status.success())
    })
}
