//! Where a result goes: stdout, or a file that appears only when it is complete.
//!
//! ```text
//!   -o r.json    a file without a name ──written──> it becomes r.json    half a file is never seen
//!   -o /dev/…    written in place                                        never replaces a device
//!   -o -         stdout
//! ```

mod draft;

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::draft::Draft;

/// Bytes that are written together: reports can be large.
const BUFFER_BYTES: usize = 1 << 16;

/// An open place for a result.
pub(crate) enum Output {
    /// The standard output.
    Stdout(BufWriter<Stdout>),
    /// Something that is no regular file: a pipe, a device.
    InPlace { file: BufWriter<File>, path: PathBuf },
    /// What will become the file. Dropped, it is gone.
    Replace { file: BufWriter<Draft>, path: PathBuf },
}

impl Output {
    /// Opens `path`, or stdout for none and for `-`.
    ///
    /// Opened before the work begins, so that a path that cannot be written costs no time.
    /// `input` is what the result is made of; it is not overwritten.
    pub(crate) fn open(path: Option<&Path>, input: &Path) -> Result<Output> {
        Output::open_beside(path, &[input])
    }

    /// [`Output::open`] for what is made of several files, or of none.
    pub(crate) fn open_beside(path: Option<&Path>, inputs: &[&Path]) -> Result<Output> {
        match path {
            Some(path) if path != Path::new("-") => open_file(path, inputs)
                .with_context(|| format!("cannot write {}; choose another file", path.display())),
            Some(_) | None => {
                Ok(Output::Stdout(BufWriter::with_capacity(BUFFER_BYTES, io::stdout())))
            }
        }
    }

    /// Whether somebody looks at it.
    pub(crate) fn is_terminal(&self) -> bool {
        match self {
            Output::Stdout(out) => out.get_ref().is_terminal(),
            Output::InPlace { file, .. } => file.get_ref().is_terminal(),
            Output::Replace { .. } => false,
        }
    }

    /// Makes the result appear under its name.
    pub(crate) fn commit(self) -> Result<()> {
        match self {
            Output::Stdout(mut out) => out.flush().with_context(|| cannot_write(None)),
            Output::InPlace { mut file, path } => {
                file.flush().with_context(|| cannot_write(Some(&path)))
            }
            Output::Replace { file, path } => {
                let complete = || cannot_write(Some(&path));
                let file = file
                    .into_inner()
                    .map_err(io::IntoInnerError::into_error)
                    .with_context(complete)?;
                file.persist(&path).with_context(complete)
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(out) => out.write(bytes),
            Output::InPlace { file, .. } => file.write(bytes),
            Output::Replace { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::InPlace { file, .. } => file.flush(),
            Output::Replace { file, .. } => file.flush(),
        }
    }
}

/// What to say when a result cannot be written to `output`, or to stdout for none.
pub(crate) fn cannot_write(output: Option<&Path>) -> String {
    match output {
        Some(path) => {
            format!("cannot write {}; free some space or name another file", path.display())
        }
        None => "cannot write to stdout; if it goes to a file, free some space".to_owned(),
    }
}

fn open_file(path: &Path, inputs: &[&Path]) -> Result<Output> {
    let existing = match path.metadata() {
        Ok(existing) => Some(existing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let Some(existing) = existing else { return replace(path.to_owned(), None) };
    if existing.is_dir() {
        bail!("it is a directory; name a file in it");
    }
    if !existing.is_file() {
        let file = OpenOptions::new().write(true).open(path)?;
        return Ok(Output::InPlace {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            path: path.to_owned(),
        });
    }
    let is_read = |input: &&Path| input.metadata().is_ok_and(|input| same_file(&input, &existing));
    if inputs.iter().any(is_read) {
        bail!("it is the trace that is read");
    }
    // Behind a symbolic link, the file is replaced and the link stays.
    replace(path.canonicalize()?, Some(existing))
}

fn replace(path: PathBuf, existing: Option<Metadata>) -> Result<Output> {
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        Some(_) | None => Path::new("."),
    };
    if !directory.is_dir() {
        bail!("there is no directory {}", directory.display());
    }
    // The umask takes its part of this, as it does for any new file.
    let permissions = match &existing {
        Some(existing) => existing.permissions(),
        None => Permissions::from_mode(0o666),
    };
    let file = Draft::new(directory, permissions)
        .with_context(|| format!("cannot create a file in {}", directory.display()))?;
    if let Some(existing) = existing {
        // A report of root's keeps the owner of the file it replaces, if the file system has owners.
        let _ = fchown(file.file(), Some(existing.uid()), Some(existing.gid()));
    }
    Ok(Output::Replace { file: BufWriter::with_capacity(BUFFER_BYTES, file), path })
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    fn write(path: &Path, input: &Path) -> Result<()> {
        let mut output = Output::open(Some(path), input)?;
        output.write_all(b"new")?;
        output.commit()
    }

    #[test]
    fn file_appears_when_it_is_complete() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("r.json");
        let mut output = Output::open(Some(&path), Path::new("/")).expect("writable");

        output.write_all(b"half").expect("space");
        assert!(!path.exists());
        output.commit().expect("space");

        assert_eq!(fs::read(&path).expect("the result"), b"half");
        assert_eq!(names(directory.path()), ["r.json"]);
    }

    #[test]
    fn abandoned_output_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("r.json");
        fs::write(&path, "old").expect("space");
        let mut output = Output::open(Some(&path), Path::new("/")).expect("writable");
        output.write_all(b"half").expect("space");

        drop(output);

        assert_eq!(fs::read(&path).expect("the old result"), b"old");
        assert_eq!(names(directory.path()), ["r.json"]);
    }

    #[test]
    fn permissions_of_the_old_file_are_kept() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("r.json");
        fs::write(&path, "old").expect("space");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("own file");

        write(&path, Path::new("/")).expect("writable");

        assert_eq!(path.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn symbolic_link_stays_a_link() {
        let directory = tempfile::tempdir().expect("temp dir");
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "old").expect("space");
        symlink(&file, &link).expect("links");

        write(&link, Path::new("/")).expect("writable");

        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).expect("the result"), b"new");
    }

    #[test]
    fn device_is_written_in_place() {
        let output = Output::open(Some(Path::new("/dev/null")), Path::new("/")).expect("writable");

        assert!(matches!(output, Output::InPlace { .. }));
    }

    #[test]
    fn trace_that_is_read_is_not_overwritten() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("t.mtrace");
        fs::write(&path, "trace").expect("space");

        let error = write(&path, &path).expect_err("the input");

        assert!(format!("{error:#}").contains("the trace that is read"), "{error:#}");
        assert_eq!(fs::read(&path).expect("the trace"), b"trace");
    }

    #[test]
    fn directory_that_does_not_exist_is_an_error() {
        let error = write(Path::new("/nonexistent/r.json"), Path::new("/")).expect_err("no dir");

        assert!(
            format!("{error:#}").starts_with("cannot write /nonexistent/r.json; choose"),
            "{error:#}"
        );
    }
}
