//! memtrace's own chores.
//!
//! ```text
//!   setup ─→ programs, BPF toolchain ─→ ebpf ─→ object ─┬→ test, vm-test
//!                                                       └→ demo, bench
//! ```
//!
//! One module per command, plus four that they share: [`shell`] runs programs, [`cargo`] builds
//! workspace targets, [`privilege`] becomes root where a command needs it, [`tally`] counts tests. Progress goes to stderr,
//! results to stdout. Nothing here is compiled into memtrace.

mod bench;
mod bless;
mod cargo;
mod consumers;
mod demo;
mod ebpf;
mod privilege;
mod setup;
mod shell;
mod tally;
mod test;
mod toolchain;
mod vm_test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                    watch memtrace find the leak of a sample server
  cargo xtask test                    run every check and test that this machine allows
  cargo xtask test --unprivileged     the same, without the tests that need root
  cargo xtask test --only realloc     only the tests whose name contains `realloc`
  cargo xtask vm-test                 the tests that attach, on Debian's 6.1 and 6.12 kernels
  cargo xtask ebpf                    rebuild the kernel object after a change to its sources
  cargo xtask ebpf --check            is the committed kernel object fresh?
  cargo xtask bench                   what tracing costs, beside other tools; writes docs/benchmarks.md
  cargo xtask bench --only micro      only loops of one allocation and its release
  cargo xtask bench --only attach     only how long attaching to a huge program takes
";

/// Builds, tests, measures and shows memtrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", before_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing memtrace needs and this machine lacks.
    Setup(setup::Options),
    /// Build the kernel object into memtrace-ebpf/prebuilt.
    Ebpf(ebpf::Options),
    /// Run formatting, lints, unit tests, golden tests, and the tests that attach, on all kernels.
    Test(test::Options),
    /// Run the tests that attach on other kernels, in virtual machines.
    VmTest(vm_test::Options),
    /// Attach to a sample server, watch it live, print the report.
    Demo(demo::Options),
    /// Measure what tracing costs, in loops and in real programs, beside other tools.
    Bench(bench::Options),
    /// Regenerate the golden files from what the code prints now.
    Bless,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options),
        Command::Ebpf(options) => ebpf::run(&options),
        Command::Test(options) => test::run(&options),
        Command::VmTest(options) => vm_test::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Bless => bless::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
