//! The public face is what `face.txt` says: a change of it is made on purpose, seen in review, and
//! weighed against what a version promises (CONTRIBUTING.md).
//!
//! `FACE=write cargo test -p smol-face` writes the list anew. It is Linux's, with all features.

#![cfg(target_os = "linux")]

use public_api::Builder;
use std::io::Write;
use std::process::{Command, Stdio};
use std::{collections::BTreeSet, env, fs, path::Path};

/// What rustdoc's JSON calls the form that this version of `public-api` reads.
const FORMAT: &str = "\"format_version\":57";

const FACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/face.txt");

/// What the compiler finds out by itself, and nobody names.
const NOT_NAMED: [&str; 4] = ["Freeze", "RefUnwindSafe", "UnsafeUnpin", "UnwindSafe"];

/// Says why nothing is compared, past the test harness, which would keep it to itself.
fn skip(why: &str) {
    writeln!(std::io::stderr(), "skipped: the face is not compared: {why}").ok();
}

fn nightly() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.arg("+nightly").stdin(Stdio::null());
    cargo.env_remove("RUSTFLAGS").env_remove("RUSTDOCFLAGS");
    cargo
}

#[test]
fn the_public_face_is_that_of_the_list() {
    let version = nightly().arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        return skip("there is no nightly cargo");
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("face");
    let rustdoc = nightly()
        .args(["rustdoc", "--locked", "--lib", "-p", "smol", "--all-features", "--target-dir"])
        .arg(&directory)
        .args(["--", "-Zunstable-options", "--output-format", "json"])
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&rustdoc.stderr);
    assert!(rustdoc.status.success(), "rustdoc fails:\n{said}");
    let json = directory.join("doc/smol.json");
    if !fs::read_to_string(&json).expect("rustdoc's JSON").contains(FORMAT) {
        return skip("this nightly's rustdoc writes another form of JSON");
    }

    let api = Builder::from_rustdoc_json(&json).omit_blanket_impls(true).build();
    let api = api.unwrap_or_else(|err| panic!("rustdoc's JSON cannot be read: {err}"));
    let lines = api.items().map(|item| format!("{item}\n"));
    let is_named = |line: &String| {
        let marker = line.split(" for ").next().unwrap_or_default();
        !NOT_NAMED.iter().any(|name| marker.ends_with(&format!("::{name}")))
    };
    let face: String = lines.filter(is_named).collect();
    if env::var("FACE").is_ok_and(|word| word == "write") {
        return fs::write(FACE, face).expect("the list is written");
    }

    let listed = fs::read_to_string(FACE).expect("the list");
    if face != listed {
        let (is, was): (BTreeSet<_>, BTreeSet<_>) =
            (face.lines().collect(), listed.lines().collect());
        let more = is.difference(&was).map(|line| format!("+ {line}\n"));
        let less = was.difference(&is).map(|line| format!("- {line}\n"));
        panic!(
            "the face has changed; if it is meant to, `FACE=write cargo test -p smol-face`:\n{}",
            less.chain(more).collect::<String>()
        );
    }
}
