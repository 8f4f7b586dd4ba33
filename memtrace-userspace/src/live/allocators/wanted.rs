//! Whether the functions that the user has named are there, before anything is attached.
//!
//! In: process ids or a command, and [`ProbeSpec`]s. Out: nothing, or the first that is missing and
//! what there is instead. A library that is loaded later is looked at when it comes ([`super::plan`]).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::named::{self, NotFound};
use super::spec::{ModuleName, ProbeSpec};
use super::survey::first_mappings;
use crate::live::lazy_file::LazyFile;
use crate::live::process::{self, ProcessError};
use crate::record::Pid;

/// How many files an error lists.
const MAX_FILES: usize = 8;

/// Why a probe cannot be placed.
#[derive(Debug, Error)]
pub enum WantedError {
    /// The file has no such function.
    #[error("--probe {probe}: in {}: {reason}", file.display())]
    Function {
        /// What the user has written.
        probe: String,
        /// The file.
        file: PathBuf,
        /// Why.
        reason: NotFound,
    },
    /// No process has mapped the file.
    #[error(
        "--probe {probe}: no code of {module} is mapped; mapped are {}; a file is named by its path \
         or its name, as in `libpool.so.1!f`",
        files.join(", ")
    )]
    Module {
        /// What the user has written.
        probe: String,
        /// The file.
        module: String,
        /// Some that are.
        files: Vec<String>,
    },
    /// The file cannot be read.
    #[error("--probe {probe}: cannot read {}", file.display())]
    Read {
        /// What the user has written.
        probe: String,
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// The functions that the user has named, for the files of one process.
pub struct Wanted<'a> {
    specs: &'a [ProbeSpec],
    executable: Option<Vec<u8>>,
}

impl<'a> Wanted<'a> {
    /// Those for the files of `pid`.
    pub fn of(pid: Pid, specs: &'a [ProbeSpec]) -> Self {
        let executable = match specs {
            [] => None,
            _ => process::exe(pid).ok().map(|(path, _is_deleted)| path),
        };
        Wanted { specs, executable }
    }

    /// Those for the file at `path`.
    pub fn in_file(&self, path: &[u8]) -> Vec<&'a ProbeSpec> {
        self.specs.iter().filter(|spec| spec.is_in(path, self.executable.as_deref())).collect()
    }
}

/// Checks that each probe can be placed in one of these processes.
pub fn require(pids: &[Pid], specs: &[ProbeSpec]) -> Result<(), WantedError> {
    if specs.is_empty() {
        return Ok(());
    }
    let mut files = Vec::new();
    let mut is_mapped = vec![false; specs.len()];
    for pid in pids {
        let mappings = process::mappings(*pid)?;
        let wanted = Wanted::of(*pid, specs);
        for (path, mapping) in first_mappings(&mappings) {
            files.push(String::from_utf8_lossy(path).into_owned());
            for (spec, is_mapped) in specs.iter().zip(&mut is_mapped) {
                if spec.is_in(path, wanted.executable.as_deref()) {
                    *is_mapped = true;
                    let file = process::open_mapped(*pid, mapping)?;
                    find(spec, Path::new(OsStr::from_bytes(path)), &file)?;
                }
            }
        }
    }
    files.truncate(MAX_FILES);
    match specs.iter().zip(is_mapped).find(|(_, is_mapped)| !is_mapped) {
        Some((spec, _)) => Err(WantedError::Module {
            probe: spec.to_string(),
            module: spec.module.to_string(),
            files,
        }),
        None => Ok(()),
    }
}

/// Checks the probes that concern files that are known before the command runs.
pub fn require_in_command(command: &[OsString], specs: &[ProbeSpec]) -> Result<(), WantedError> {
    let program = command.first().and_then(|program| in_path(program));
    for spec in specs {
        let path = match &spec.module {
            ModuleName::Executable => program.clone(),
            ModuleName::Path(path) => Some(PathBuf::from(path)),
            ModuleName::FileName(_) => None,
        };
        // A command that does not exist is told of when it is run.
        let Some(path) = path else { continue };
        let file = File::open(&path).map_err(|source| WantedError::Read {
            probe: spec.to_string(),
            file: path.clone(),
            source,
        })?;
        find(spec, &path, &file)?;
    }
    Ok(())
}

fn find(spec: &ProbeSpec, path: &Path, file: &File) -> Result<(), WantedError> {
    let probe = || spec.to_string();
    let bytes = LazyFile::new(file).map_err(|source| WantedError::Read {
        probe: probe(),
        file: path.to_owned(),
        source,
    })?;
    match named::resolve(&bytes, spec) {
        Ok(_) => Ok(()),
        Err(reason) => Err(WantedError::Function { probe: probe(), file: path.to_owned(), reason }),
    }
}

/// The file that a command's name stands for, as `execvp` looks for it.
fn in_path(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
