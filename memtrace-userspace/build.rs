//! Says which kernel object the loader embeds.
//!
//! The committed one, unless `MEMTRACE_EBPF_OBJECT` names another: one that was just built from
//! source, or one that logs. The loader reads the path with
//! `aya::include_bytes_aligned!(env!("MEMTRACE_EBPF_OBJECT"))`.

use std::{env, path::Path};

const VARIABLE: &str = "MEMTRACE_EBPF_OBJECT";
const COMMITTED: &str = "../memtrace-ebpf/prebuilt/memtrace-ebpf.o";

fn main() {
    let package = env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's directory");
    // `join` leaves an absolute path as it is.
    let object = Path::new(&package).join(env::var_os(VARIABLE).unwrap_or_else(|| COMMITTED.into()));
    let object = object.display();

    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed={object}");
    println!("cargo::rustc-env={VARIABLE}={object}");
    if !Path::new(&object.to_string()).is_file() {
        println!("cargo::warning=no kernel object at {object}; run `cargo xtask ebpf`");
    }
}
