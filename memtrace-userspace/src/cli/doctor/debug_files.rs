//! Whether a file's debug information is there, and which package would bring it.
//!
//! In: the facts of a mapped file. Out: [`Found`]. Asks the file system, and for files without debug
//! information the package manager that owns them (`dpkg -S`, `rpm -qf`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use memtrace_userspace::live::allocators::facts::{Facts, Names};
use memtrace_userspace::symbols::Options;

/// Where the debug information of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// In the file.
    Itself,
    /// In a file of its own.
    Separate(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// What was found for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where.
    pub(super) origin: Origin,
    /// How to get it, if it is nowhere.
    pub(super) advice: Option<Advice>,
}

/// What to do; files with the same `before` are told of in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    /// The beginning of the sentence.
    pub(super) before: &'static str,
    /// The file's part of it.
    pub(super) what: String,
}

/// Looks where the symbolizer will look.
pub(super) fn find(path: &[u8], facts: &Facts) -> Found {
    if facts.names == Names::DebugInfo {
        return Found { origin: Origin::Itself, advice: None };
    }
    let path = Path::new(OsStr::from_bytes(path));
    let Options { debug_dirs, .. } = Options::default();
    let separate = candidates(path, facts, &debug_dirs).into_iter().find(|path| path.is_file());
    match separate {
        Some(separate) => Found { origin: Origin::Separate(separate), advice: None },
        None => Found { origin: Origin::Nowhere, advice: Some(advice(path, owner(path))) },
    }
}

fn candidates(path: &Path, facts: &Facts, debug_dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let [first, rest @ ..] = facts.build_id.as_slice()
        && !rest.is_empty()
    {
        let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!(".build-id/{first:02x}/{rest}.debug");
        found.extend(debug_dirs.iter().map(|dir| dir.join(&name)));
    }
    if let Some(link) = facts.debug_link.as_deref().filter(|link| !link.contains(&b'/')) {
        let link = OsStr::from_bytes(link);
        let dir = path.parent().unwrap_or(Path::new("/"));
        found.extend([dir.join(link), dir.join(".debug").join(link)]);
        let below = dir.strip_prefix("/").unwrap_or(dir);
        found.extend(debug_dirs.iter().map(|debug| debug.join(below).join(link)));
    }
    found.retain(|candidate| candidate != path);
    found
}

/// The package that a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// One of Debian's or its kin's.
    Deb(String),
    /// One of Fedora's or its kin's.
    Rpm(String),
    /// None, or none that can be told.
    Nobody,
}

fn owner(path: &Path) -> Owner {
    // Where /lib is a link to /usr/lib, packages know the files by either path.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let short = real.strip_prefix("/usr").map(|rest| Path::new("/").join(rest));
    for candidate in [Some(real.clone()), short.ok()].into_iter().flatten() {
        if let Some(package) = ask("dpkg", "-S", &candidate).and_then(|text| deb_of(&text)) {
            return Owner::Deb(package);
        }
    }
    match ask("rpm", "-qf", &real) {
        Some(text) => text.lines().next().map_or(Owner::Nobody, |name| Owner::Rpm(name.to_owned())),
        None => Owner::Nobody,
    }
}

/// `libc6` of `libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6`.
fn deb_of(text: &str) -> Option<String> {
    let (package, _) = text.lines().next()?.split_once(": ")?;
    let package = package.split(", ").next()?.split(':').next()?;
    Some(package.to_owned())
}

fn ask(program: &str, option: &str, path: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(option).arg(path).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn advice(path: &Path, owner: Owner) -> Advice {
    let shown = path.display().to_string();
    let (before, what) = match owner {
        Owner::Deb(package) if package == "libc6" => {
            ("names: apt install ", "libc6-dbg".to_owned())
        }
        Owner::Deb(package) => (
            "names, from the debug archive (deb.debian.org/debian-debug, or Ubuntu's ddebs): \
             apt install ",
            format!("{package}-dbgsym"),
        ),
        Owner::Rpm(package) => ("names: dnf debuginfo-install ", package),
        Owner::Nobody if path.components().any(|part| part.as_os_str() == "target") => {
            ("names: `debug = \"line-tables-only\"` in the Cargo profile of ", shown)
        }
        Owner::Nobody => ("names: compile with -g, and do not strip ", shown),
    };
    Advice { before, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_is_read_from_the_words_of_dpkg() {
        assert_eq!(
            deb_of("libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6\n").as_deref(),
            Some("libc6")
        );
        assert_eq!(deb_of("node-a, nodejs: /usr/bin/node\n").as_deref(), Some("node-a"));
        assert_eq!(deb_of(""), None);
    }

    #[test]
    fn debug_file_is_looked_for_by_build_id_and_by_link() {
        let facts = Facts {
            build_id: vec![0xab, 0xcd, 0xef],
            debug_link: Some(b"app.debug".to_vec()),
            ..Facts::default()
        };

        let found = candidates(Path::new("/usr/bin/app"), &facts, &["/g".into()]);

        let expected = [
            "/g/.build-id/ab/cdef.debug",
            "/usr/bin/app.debug",
            "/usr/bin/.debug/app.debug",
            "/g/usr/bin/app.debug",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn advice_names_what_the_distribution_has() {
        let path = Path::new("/usr/bin/app");

        assert_eq!(advice(path, Owner::Deb("nodejs".into())).what, "nodejs-dbgsym");
        let rpm = advice(path, Owner::Rpm("glibc-2.38".into()));
        assert_eq!((rpm.before, &*rpm.what), ("names: dnf debuginfo-install ", "glibc-2.38"));
        assert!(advice(path, Owner::Nobody).before.contains("-g"));
    }
}
