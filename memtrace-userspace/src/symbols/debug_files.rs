//! Where the files that belong to an image may lie.
//!
//! Pure: names in, paths to try out, best first; nothing is opened here. Whoever opens one must
//! check that it is the right file (build id or checksum), for two reasons: a search directory
//! holds many versions of a file, and the names come from the target.
//!
//! ```text
//!   image /usr/bin/app, id abcdef…    D: a search directory    G: a debug directory (/usr/lib/debug)
//!   image          /usr/bin/app       D/usr/bin/app  D/app  D/.build-id/ab/cdef…
//!   by build id    G/.build-id/ab/cdef….debug        the same in D
//!   by debug link  /usr/bin/L  /usr/bin/.debug/L     G/usr/bin/L  D/usr/bin/L  D/L
//! ```
//!
//! The directories are those that gdb uses, so what makes gdb find a file makes memtrace find it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::Options;

/// Candidates for the image itself.
pub(super) fn images(options: &Options, path: &Path, build_id: &[u8]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        options.roots.iter().filter_map(|root| under(root, path)).collect();
    found.push(path.to_owned());
    for dir in &options.search_dirs {
        found.extend(under(dir, path));
        found.extend(path.file_name().map(|name| dir.join(name)));
        found.extend(build_id_path(dir, build_id, ""));
    }
    found
}

/// Candidates for the debug information of the file with this build id.
pub(super) fn by_build_id(options: &Options, build_id: &[u8]) -> Vec<PathBuf> {
    let dirs = options.debug_dirs.iter().chain(&options.search_dirs);
    dirs.filter_map(|dir| build_id_path(dir, build_id, ".debug")).collect()
}

/// Candidates for the debug information that the image at `image` links to by name.
///
/// A link is a plain file name; one that is a path is ignored, since it comes from the target.
pub(super) fn by_link(options: &Options, image: &Path, link: &[u8]) -> Vec<PathBuf> {
    let link = Path::new(OsStr::from_bytes(link));
    let is_plain = link.file_name() == Some(link.as_os_str());
    let Some(dir) = image.parent().filter(|_| is_plain) else {
        return Vec::new();
    };
    let mut found = vec![dir.join(link), dir.join(".debug").join(link)];
    for root in options.debug_dirs.iter().chain(&options.search_dirs) {
        found.extend(under(root, dir).map(|dir| dir.join(link)));
    }
    found.extend(options.search_dirs.iter().map(|dir| dir.join(link)));
    // The debug information of a file is not the file: an image that links to itself has none.
    found.retain(|candidate| candidate != image);
    found
}

/// Candidates for the file that `debug_file` shares debug information with (made by `dwz`).
pub(super) fn by_alternate_link(
    options: &Options,
    debug_file: &Path,
    link: &[u8],
    build_id: &[u8],
) -> Vec<PathBuf> {
    let link = Path::new(OsStr::from_bytes(link));
    let mut found = Vec::new();
    // `join` leaves an absolute link as it is.
    found.extend(debug_file.parent().map(|dir| dir.join(link)));
    for dir in &options.search_dirs {
        found.extend(under(dir, link));
        found.extend(link.file_name().map(|name| dir.join(name)));
    }
    found.extend(by_build_id(options, build_id));
    found
}

/// Candidates for the package of split DWARF of the image: `app.dwp` next to it.
pub(super) fn packages(options: &Options, image: &Path) -> Vec<PathBuf> {
    let Some(name) = image.file_name() else {
        return Vec::new();
    };
    let mut package = name.to_owned();
    package.push(".dwp");
    let beside = image.with_file_name(&package);
    let elsewhere = options.search_dirs.iter().map(|dir| dir.join(&package));
    std::iter::once(beside).chain(elsewhere).collect()
}

/// Candidates for a single file of split DWARF, named by the unit that was split.
pub(super) fn split_files(
    options: &Options,
    image: &Path,
    compilation_dir: Option<&[u8]>,
    name: &[u8],
) -> Vec<PathBuf> {
    let name = Path::new(OsStr::from_bytes(name));
    let compilation_dir = compilation_dir.map(|dir| Path::new(OsStr::from_bytes(dir)));
    let mut found = Vec::new();
    found.extend(compilation_dir.map(|dir| dir.join(name)));
    if let Some(name) = name.file_name() {
        found.extend(image.parent().map(|dir| dir.join(name)));
        found.extend(options.search_dirs.iter().map(|dir| dir.join(name)));
    }
    found
}

/// `path`, which is absolute, as it would be with `root` for `/`.
fn under(root: &Path, path: &Path) -> Option<PathBuf> {
    let relative = path.strip_prefix("/").ok()?;
    let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    is_plain.then(|| root.join(relative))
}

/// `DIR/.build-id/ab/cdef…SUFFIX`.
fn build_id_path(dir: &Path, build_id: &[u8], suffix: &str) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    if rest.is_empty() {
        return None;
    }
    let name = super::hex(rest) + suffix;
    Some(dir.join(".build-id").join(super::hex(&[*first])).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            search_dirs: vec!["/s".into()],
            debug_dirs: vec!["/g".into()],
            ..Options::default()
        }
    }

    fn paths(found: Vec<PathBuf>) -> Vec<String> {
        found.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }

    #[test]
    fn image_of_a_container_is_looked_for_in_the_container_first() {
        let options = Options { roots: vec!["/proc/7/root".into()], ..options() };

        let found = images(&options, Path::new("/usr/bin/app"), &[]);

        assert_eq!(paths(found)[..2], ["/proc/7/root/usr/bin/app", "/usr/bin/app"]);
    }

    #[test]
    fn image_is_looked_for_at_its_path_first() {
        let found = images(&options(), Path::new("/usr/bin/app"), &[0xab, 0xcd, 0xef]);

        let expected = ["/usr/bin/app", "/s/usr/bin/app", "/s/app", "/s/.build-id/ab/cdef"];
        assert_eq!(paths(found), expected);
    }

    #[test]
    fn image_without_build_id_is_looked_for_by_name_only() {
        let found = images(&options(), Path::new("/usr/bin/app"), &[]);

        assert_eq!(paths(found), ["/usr/bin/app", "/s/usr/bin/app", "/s/app"]);
    }

    #[test]
    fn path_with_parents_does_not_leave_the_search_directory() {
        let found = images(&options(), Path::new("/usr/../../etc/app"), &[]);

        assert_eq!(paths(found), ["/usr/../../etc/app", "/s/app"]);
    }

    #[test]
    fn build_id_of_one_byte_names_no_file() {
        assert_eq!(by_build_id(&options(), &[0xab]), Vec::<PathBuf>::new());
    }

    #[test]
    fn debug_link_is_looked_for_where_gdb_does() {
        let found = by_link(&options(), Path::new("/usr/bin/app"), b"app.debug");

        let expected = [
            "/usr/bin/app.debug",
            "/usr/bin/.debug/app.debug",
            "/g/usr/bin/app.debug",
            "/s/usr/bin/app.debug",
            "/s/app.debug",
        ];
        assert_eq!(paths(found), expected);
    }

    #[test]
    fn debug_link_that_is_a_path_is_ignored() {
        for link in [&b"../../etc/shadow"[..], b"/etc/shadow", b"..", b"", b"a/"] {
            let found = by_link(&options(), Path::new("/usr/bin/app"), link);

            assert_eq!(found, Vec::<PathBuf>::new(), "{link:?}");
        }
    }

    #[test]
    fn debug_link_to_the_image_itself_is_ignored() {
        let found = by_link(&options(), Path::new("/usr/bin/app"), b"app");

        assert!(!found.contains(&"/usr/bin/app".into()));
    }

    #[test]
    fn alternate_link_is_relative_to_the_debug_file() {
        let link = b"../../.dwz/app.debug";

        let found = by_alternate_link(&options(), Path::new("/g/a/b/x.debug"), link, &[1, 2]);

        let expected = [
            "/g/a/b/../../.dwz/app.debug",
            "/s/app.debug",
            "/g/.build-id/01/02.debug",
            "/s/.build-id/01/02.debug",
        ];
        assert_eq!(paths(found), expected);
    }

    #[test]
    fn split_file_is_looked_for_where_it_was_compiled_first() {
        let found = split_files(&options(), Path::new("/bin/app"), Some(b"/src"), b"out/a.dwo");

        assert_eq!(paths(found), ["/src/out/a.dwo", "/bin/a.dwo", "/s/a.dwo"]);
        assert_eq!(
            paths(packages(&options(), Path::new("/bin/app"))),
            ["/bin/app.dwp", "/s/app.dwp"]
        );
    }
}
