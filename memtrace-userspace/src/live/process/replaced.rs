//! Files that were deleted or replaced while a process maps them.
//!
//! In: a process and the path that its mapping was recorded with. Out: where the kernel still shows
//! the file, `/proc/PID/map_files/START-END`. Whoever opens it checks that it is the right one: the
//! id may be another process's by now.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::binary::map_file_path;
use super::{Mapped, mappings};
use crate::record::Pid;

/// Where the file is that `pid` has mapped from `path` and that is there no more, if there is one.
pub fn file_at(pid: Pid, path: &Path) -> Option<PathBuf> {
    let mappings = mappings(pid).ok()?;
    let mapping = mappings.iter().find(|mapping| match &mapping.mapped {
        Mapped::File { path: mapped, deleted: true } => mapped == path.as_os_str().as_bytes(),
        _ => false,
    });
    mapping.map(|mapping| map_file_path(pid, mapping))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_where_it_was_is_not_replaced() {
        let own = Pid(std::process::id());
        let program = std::env::current_exe().unwrap();

        assert_eq!(file_at(own, &program), None);
    }

    #[test]
    fn process_that_is_gone_has_no_files() {
        assert_eq!(file_at(Pid(u32::MAX), Path::new("/bin/true")), None);
    }
}
