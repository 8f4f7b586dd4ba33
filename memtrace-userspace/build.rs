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
    let named = env::var_os(VARIABLE).unwrap_or_else(|| COMMITTED.into());
    // `join` leaves an absolute path as it is.
    let path = Path::new(&package).join(named);
    let object = path.display();

    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed={object}");
    println!("cargo::rustc-env={VARIABLE}={object}");
    if !path.is_file() {
        println!("cargo::warning=no kernel object at {object}; run `cargo xtask ebpf`");
    }
}
