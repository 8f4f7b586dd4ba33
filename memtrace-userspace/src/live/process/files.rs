//! Files as a running process has them, whatever became of their paths.
//!
//! In: a process and the path that its mapping was recorded with. Out: paths to try out:
//!
//! ```text
//!   /proc/PID/root/usr/bin/app         of another mount namespace: a container
//!   /proc/PID/map_files/START-END      deleted or replaced since it was mapped
//! ```
//!
//! Whoever opens them checks that they are the right file: the process may be hostile, and its id
//! may be another's by now.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::binary::{map_file_path, root_path};
use super::{Mapped, mappings};
use crate::record::Pid;

/// Where the file may be that `pid` maps from `path`. Nowhere, if the process is gone.
pub fn files_at(pid: Pid, path: &Path) -> Vec<PathBuf> {
    let path = path.as_os_str().as_bytes();
    let mut found = Vec::new();
    if path.starts_with(b"/") {
        found.push(root_path(pid, path));
    }
    let mappings = mappings(pid).unwrap_or_default();
    let mapping = mappings.iter().find(|mapping| match &mapping.mapped {
        Mapped::File { path: mapped, deleted: true } => mapped == path,
        _ => false,
    });
    found.extend(mapping.map(|mapping| map_file_path(pid, mapping)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_a_running_process_is_below_its_root() {
        let own = Pid(std::process::id());

        let found = files_at(own, Path::new("/usr/bin/app"));

        assert_eq!(found, [root_path(own, b"/usr/bin/app")]);
    }

    #[test]
    fn process_that_is_gone_has_no_mappings() {
        assert_eq!(files_at(Pid(u32::MAX), Path::new("no path")), Vec::<PathBuf>::new());
    }
}
