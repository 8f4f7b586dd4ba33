//! What to switch on, so that a language runtime's functions get names.
//!
//! In: a snapshot. Out: a line for each runtime that stacks go through and whose functions have no
//! names, or are not in the stacks at all. Runtimes are told by the names of their files; without
//! one in a stack, code without names is only counted. Programs of Go are counted by the source, and
//! get a line that says what is seen of them.

use crate::pipeline::snapshot::{Place, Snapshot};
use crate::record::{GO_PROGRAMS, Image};
use crate::views::frames::base_name;
use crate::views::printable::printable;
use crate::views::quantity::count;

/// A runtime that can name the code that it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runtime {
    V8,
    Java,
    DotNet,
    /// With its minor version: 3.12 is 12.
    Python(u32),
    Erlang,
    Ruby,
}

/// What is seen of a program of Go.
const GO: &str = "of Go's own heap only the mappings by which it grows are counted, what C code \
                  allocates in full; for that heap, use Go's pprof";

/// What would give names, or is not seen of a runtime, a line each.
pub(super) fn hints(snapshot: &Snapshot) -> Vec<String> {
    let runtimes: Vec<Option<Runtime>> =
        snapshot.images.iter().map(|image| runtime_of(image)).collect();
    let mut used: Vec<Runtime> = Vec::new();
    let mut nameless_stacks = 0_u64;
    let has_anonymous = |place: &Place| match *place {
        Place::Anonymous { pid, address } => !snapshot.jit_names.contains_key(&(pid, address)),
        Place::InFile { .. } | Place::Unknown { .. } => false,
    };
    for usage in &snapshot.stacks {
        nameless_stacks += u64::from(usage.stack.frames.iter().any(has_anonymous));
        for place in &usage.stack.frames {
            if let Place::InFile { image, offset: _ } = *place
                && let Some(Some(runtime)) = runtimes.get(image as usize)
                && !used.contains(runtime)
            {
                used.push(*runtime);
            }
        }
    }
    let names_python = || snapshot.jit_names.values().any(|name| name.starts_with(b"py::"));
    let mut lines: Vec<String> = used
        .into_iter()
        .filter(|runtime| match runtime {
            Runtime::Python(_) => !names_python(),
            // They name all of their code, or none of it.
            Runtime::V8 | Runtime::Java => snapshot.jit_names.is_empty(),
            // Without a just-in-time compiler there is nothing to name.
            Runtime::DotNet | Runtime::Erlang | Runtime::Ruby => nameless_stacks > 0,
        })
        .map(advice)
        .collect();
    if snapshot.counters.iter().any(|(name, programs)| name == GO_PROGRAMS && *programs > 0) {
        lines.push(GO.to_owned());
    }
    if nameless_stacks > 0 {
        lines.push(format!(
            "{} stacks go through code that was made at run time and has no name",
            count(nameless_stacks)
        ));
    }
    lines
}

fn runtime_of(image: &Image) -> Option<Runtime> {
    let Image::File { path, build_id: _ } = image else { return None };
    let path = printable(path);
    let name = base_name(&path);
    match name {
        "node" | "nodejs" | "electron" | "chrome" | "chromium" | "deno" => Some(Runtime::V8),
        "libjvm.so" => Some(Runtime::Java),
        "libcoreclr.so" => Some(Runtime::DotNet),
        "beam.smp" => Some(Runtime::Erlang),
        "ruby" => Some(Runtime::Ruby),
        _ if name.starts_with("libnode.so") => Some(Runtime::V8),
        _ if name.starts_with("libruby") => Some(Runtime::Ruby),
        _ => {
            let version = name.strip_prefix("libpython3.").or(name.strip_prefix("python3."))?;
            let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
            version[..end].parse().ok().map(Runtime::Python)
        }
    }
}

fn advice(runtime: Runtime) -> String {
    match runtime {
        Runtime::V8 => "JavaScript functions have no names: start node with --perf-basic-prof \
                        --interpreted-frames-native-stack"
            .to_owned(),
        Runtime::Java => {
            "Java methods have no names: start java 17 or later with -XX:+PreserveFramePointer, \
             and run `jcmd PID Compiler.perfmap` before memtrace ends; or add \
             -XX:+UnlockDiagnosticVMOptions -XX:+DumpPerfMapAtExit"
                .to_owned()
        }
        Runtime::DotNet => {
            ".NET methods have no names: set DOTNET_PerfMapEnabled=1 before it starts".to_owned()
        }
        Runtime::Erlang => {
            "Erlang functions have no names: start it with erl +JPperf true".to_owned()
        }
        Runtime::Ruby => {
            "Ruby methods have no names: start ruby with --yjit --yjit-perf".to_owned()
        }
        Runtime::Python(minor @ 12) => {
            format!("Python functions are not in the stacks: start python3.{minor} with -X perf")
        }
        Runtime::Python(minor @ 13..) => format!(
            "Python functions have no names: start python3.{minor} with -X perf (-X perf_jit \
             writes a dump that memtrace does not read)"
        ),
        Runtime::Python(minor) => format!(
            "Python functions are not in the stacks: python3.{minor} cannot name them, 3.12 and \
             later can (-X perf)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memtrace_common::addr::Avma;

    use super::*;
    use crate::pipeline::snapshot::Stack;
    use crate::record::Pid;
    use crate::views::fixture;

    /// The fixture's session, in a program of this name; one stack goes through code without a
    /// file.
    fn snapshot_of(program: &str) -> Snapshot {
        let mut snapshot = fixture::snapshot();
        snapshot.images[0] =
            Arc::new(Image::File { path: program.as_bytes().to_vec(), build_id: Vec::new() });
        let Stack { end, frames } = &*snapshot.stacks[0].stack;
        let mut frames = frames.clone();
        frames.insert(1, Place::Anonymous { pid: Pid(1), address: Avma(0x10) });
        snapshot.stacks[0].stack = Arc::new(Stack { end: *end, frames });
        snapshot
    }

    fn name(snapshot: &mut Snapshot, name: &str) {
        snapshot.jit_names = Arc::new([((Pid(1), Avma(0x10)), name.as_bytes().into())].into());
    }

    #[test]
    fn program_without_run_time_code_gets_no_hint() {
        assert_eq!(hints(&fixture::snapshot()), Vec::<String>::new());
    }

    #[test]
    fn code_of_an_unknown_runtime_is_counted() {
        let line = "1 stacks go through code that was made at run time and has no name";

        assert_eq!(hints(&snapshot_of("/srv/app")), [line]);
    }

    #[test]
    fn runtime_is_told_by_the_files_of_stacks() {
        let switches = [
            ("/usr/bin/node", "--perf-basic-prof"),
            ("/usr/lib/libnode.so.108", "--perf-basic-prof"),
            ("/usr/lib/jvm/lib/server/libjvm.so", "PreserveFramePointer"),
            ("/usr/bin/python3.12", "python3.12 with -X perf"),
            ("/usr/lib/libpython3.13.so.1.0", "python3.13 with -X perf"),
            ("/usr/bin/python3.11", "python3.11 cannot"),
            ("/opt/dotnet/libcoreclr.so", "DOTNET_PerfMapEnabled"),
            ("/usr/lib/libruby-3.1.so.3.1", "--yjit-perf"),
            ("/usr/lib/erlang/erts/bin/beam.smp", "+JPperf"),
        ];
        for (program, switch) in switches {
            let lines = hints(&snapshot_of(program));

            assert_eq!(lines.len(), 2, "{program}");
            assert!(lines[0].contains(switch), "{program}: {}", lines[0]);
        }
    }

    #[test]
    fn what_is_seen_of_a_go_program_is_said() {
        let mut snapshot = fixture::snapshot();

        snapshot.counters.push((GO_PROGRAMS.to_owned(), 1));

        assert_eq!(hints(&snapshot), [GO]);
    }

    #[test]
    fn runtime_that_names_its_code_needs_no_hint() {
        let mut node = snapshot_of("/usr/bin/node");
        let mut python = snapshot_of("/usr/bin/python3.12");

        name(&mut node, "JS:~f /a.js:1:1");
        name(&mut python, "py::f:/a.py");

        assert_eq!(hints(&node), Vec::<String>::new());
        assert_eq!(hints(&python), Vec::<String>::new());
    }
}
