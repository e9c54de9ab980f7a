//! Says which `src/lib.rs` is the runtime: that of the workspace, or the one that
//! `SMOL_NET_SOURCE` names, which is how the planted bugs are built.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SMOL_NET_SOURCE");
    let root = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let source = env::var_os("SMOL_NET_SOURCE").map(PathBuf::from);
    let source = source.unwrap_or_else(|| Path::new(&root).join("../../src/lib.rs"));
    let source = source.canonicalize().unwrap_or_else(|err| panic!("{}: {err}", source.display()));
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let text = format!("#[path = {source:?}]\n#[allow(warnings)]\npub mod smol;\n");
    fs::write(Path::new(&out).join("runtime.rs"), text).expect("OUT_DIR can be written");
}
