//! For build scripts: a copy of a dependency's source in which `std` is the simulated one.
//!
//! The version is the one that `Cargo.lock` names; its source is where cargo has unpacked it.
//! Modules are put into one text, so that the copy can be included; then words are replaced. A
//! word that is not found is an error.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Copies a crate: its modules that are files, and the words to be replaced.
pub fn copy(name: &str, version: &str, modules: &[&str], words: &[(&str, &str)]) {
    let source = source(name, version);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../copy.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    let mut text = read(&source.join("lib.rs"));
    // What comes after the shebang-like lines of a crate root cannot be included.
    for module in modules {
        let file = source.join(format!("{module}.rs"));
        let declared = format!("mod {module};");
        assert!(text.contains(&declared), "{name} has no {declared}");
        text = text.replace(&declared, &format!("mod {module} {{\n{}\n}}", read(&file)));
    }
    for (from, to) in words {
        assert!(text.contains(from), "{name} {version} does not say {from:?} any more");
        text = text.replace(from, to);
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("copy.rs"), text).expect("OUT_DIR can be written");
}

/// Where cargo has unpacked the version of the crate that begins so.
fn source(name: &str, version: &str) -> PathBuf {
    let lock =
        fs::read_to_string("../../../../Cargo.lock").expect("the workspace has a Cargo.lock");
    println!("cargo::rerun-if-changed=../../../../Cargo.lock");
    let entry = format!("name = \"{name}\"\nversion = \"{version}");
    let place = lock.find(&entry).unwrap_or_else(|| panic!("Cargo.lock has no {name} {version}"));
    let rest = &lock[place + entry.len()..];
    let rest = &rest[..rest.find('"').expect("a version ends with a quote")];
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let home = home.expect("CARGO_HOME or HOME is set").join("registry/src");
    let registries = fs::read_dir(&home).unwrap_or_else(|err| panic!("{}: {err}", home.display()));
    let crates = registries.filter_map(Result::ok).map(|registry| registry.path());
    crates
        .map(|registry| registry.join(format!("{name}-{version}{rest}/src")))
        .find(|path| path.is_dir())
        .unwrap_or_else(|| panic!("{name} {version}{rest} is not in {}", home.display()))
}

/// A file without its inner attributes and doc comments, and without its tests.
fn read(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut kept = String::new();
    let mut in_attribute = false;
    for line in text.lines() {
        if line.starts_with("#![") || in_attribute {
            in_attribute = !line.ends_with(']');
        } else if !line.trim_start().starts_with("//!") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}
