//! What a user of each runtime builds and ships: a TCP server that echoes.

use crate::row::{Report, Row, Unit};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

pub const ROWS: &[Row] = &[Row::new(
    "build_server",
    "CPU seconds to build a tiny server in release mode from nothing; `wall` seconds; `crates` that it uses; its `size`, stripped",
    (0, 1),
    &["raw", "ours", "tokio", "smol2", "async-std"],
    |runtime, _| build(runtime),
)
.unit(Unit::Nanos)];

/// The manifest's line and the program.
fn server(runtime: &str) -> (String, &'static str) {
    let lock = fs::read_to_string(Path::new(MANIFEST).join("../Cargo.lock")).unwrap();
    // The last is the newest.
    let locked = |name: &str| {
        let blocks = lock
            .split("[[package]]")
            .filter(|block| block.contains(&format!("name = \"{name}\"\n")));
        let version =
            blocks.filter_map(|block| block.split("version = \"").nth(1)?.split('"').next()).last();
        version.expect("a locked package").to_string()
    };
    match runtime {
        "raw" => (String::new(), RAW),
        "ours" => (format!("smol = {{ path = {:?} }}", Path::new(MANIFEST).join("..")), OURS),
        "tokio" => {
            let features = "[\"io-util\", \"net\", \"rt-multi-thread\"]";
            (
                format!("tokio = {{ version = \"={}\", features = {features} }}", locked("tokio")),
                TOKIO,
            )
        }
        "smol2" => (format!("smol = \"={}\"", locked("smol")), SMOL2),
        "async-std" => (format!("async-std = \"={}\"", locked("async-std")), ASYNC_STD),
        _ => unreachable!("a runtime of the row"),
    }
}

const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");

fn build(runtime: &str) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let (dependency, program) = server(runtime);
    let manifest = format!(
        "[package]\nname = \"server\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
        [dependencies]\n{dependency}\n[profile.release]\nstrip = true\n[workspace]\n"
    );
    fs::create_dir(directory.path().join("src")).unwrap();
    fs::write(directory.path().join("Cargo.toml"), manifest).unwrap();
    fs::write(directory.path().join("src/main.rs"), program).unwrap();
    fs::copy(Path::new(MANIFEST).join("../Cargo.lock"), directory.path().join("Cargo.lock"))
        .unwrap();
    let cargo = |args: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(args).args(["--quiet", "--offline"]).current_dir(&directory);
        command.env("CARGO_TARGET_DIR", directory.path().join("target")).stderr(Stdio::inherit());
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let (start, before) = (Instant::now(), cpu_of_children());
    cargo(&["build", "--release"]);
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_of_children() - before);
    let tree = cargo(&["tree", "--edges=normal", "--prefix=none", "--no-dedupe"]);
    let mut crates: Vec<_> = tree.lines().map(|line| line.split(" (").next()).collect();
    crates.sort();
    crates.dedup();
    let size = fs::metadata(directory.path().join("target/release/server")).unwrap().len();
    Report(vec![
        ("", cpu * 1e9),
        ("wall", wall * 1e9),
        // Without the server itself.
        ("crates", crates.len() as f64 - 1.0),
        ("size", size as f64),
    ])
}

/// The seconds that finished children of this process have used.
fn cpu_of_children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(13).take(2).map(|field| field.parse::<f64>().unwrap());
    ticks.sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
}

const RAW: &str = r#"
use std::{io, net::TcpListener, thread};

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:7000")?;
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || io::copy(&mut &stream, &mut &stream));
    }
}
"#;

const OURS: &str = r#"
use smol::{Async, io};
use std::net::TcpListener;

fn main() -> io::Result<()> {
    smol::block_on(async {
        let listener = Async::<TcpListener>::bind("127.0.0.1:7000")?;
        loop {
            let (stream, _) = listener.accept().await?;
            smol::spawn(async move { io::copy(&stream, &stream).await }).detach();
        }
    })
}
"#;

const TOKIO: &str = r#"
use tokio::{io, net::TcpListener, runtime::Runtime};

fn main() -> io::Result<()> {
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:7000").await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                io::copy(&mut reader, &mut writer).await
            });
        }
    })
}
"#;

const SMOL2: &str = r#"
use smol::{io, net::TcpListener};

fn main() -> io::Result<()> {
    smol::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:7000").await?;
        loop {
            let (stream, _) = listener.accept().await?;
            smol::spawn(io::copy(stream.clone(), stream)).detach();
        }
    })
}
"#;

const ASYNC_STD: &str = r#"
use async_std::{io, net::TcpListener, task};

fn main() -> io::Result<()> {
    task::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:7000").await?;
        loop {
            let (stream, _) = listener.accept().await?;
            task::spawn(async move { io::copy(&mut &stream, &mut &stream).await });
        }
    })
}
"#;
