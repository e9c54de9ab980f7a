//! What the two test programs of the examples share, that of `examples` and that of
//! `examples/ecosystem`: a running program that is typed to and listened to.

#![allow(dead_code)] // each test program uses its own part of this file

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// No example needs nearly as long, even on a busy machine; one that does hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const ANY_PORT: &str = "127.0.0.1:0";

/// A running program. Dropping it kills it.
pub(crate) struct Program {
    name: String,
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    /// What it prints, to standard output and standard error alike.
    printed: Receiver<String>,
    /// What has been taken from there, for the message when the test fails.
    seen: Vec<String>,
    deadline: Instant,
}

impl Program {
    /// Starts an example.
    pub(crate) fn example(name: &str, args: &[&str]) -> Program {
        // This test is target/PROFILE/deps/examples-HASH, the examples are
        // target/PROFILE/examples/NAME.
        let mut path = std::env::current_exe().expect("a path to this test");
        path.pop();
        path.pop();
        path.push("examples");
        path.push(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        assert!(
            path.exists(),
            "{path:?} is not there: plain `cargo test` or `cargo build --examples` builds it"
        );

        let mut command = Command::new(path);
        // What it may need is found from the root of its package.
        command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
        Program::start(name, &mut command)
    }

    /// Starts curl, or tells that it is not there.
    pub(crate) fn curl(args: &[&str]) -> Option<Program> {
        if Command::new("curl").arg("--version").output().is_err() {
            // Past the test harness, which would keep it to itself.
            writeln!(std::io::stderr(), "skipped: curl is not installed").ok();
            return None;
        }
        let mut command = Command::new("curl");
        command.args(["-sS", "--noproxy", "*"]).args(args);
        Some(Program::start("curl", &mut command))
    }

    fn start(name: &str, command: &mut Command) -> Program {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));

        let (sender, printed) = mpsc::channel();
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("a pipe"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("a pipe"));
        for pipe in [stdout, stderr] {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    sender.send(String::from_utf8_lossy(&line).into_owned()).ok();
                }
            });
        }
        let stdin = child.stdin.take();
        Program {
            name: name.into(),
            child,
            stdin,
            printed,
            seen: Vec::new(),
            deadline: Instant::now() + LIMIT,
        }
    }

    /// Fails the test and shows what the program has printed.
    fn fail(&self, why: &str) -> ! {
        panic!("{}: {why}. It printed:\n{}\n", self.name, self.seen.join("\n"))
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        if let Err(error) = stdin.write_all(format!("{line}\n").as_bytes()) {
            self.fail(&format!("cannot type {line:?}: {error}"));
        }
    }

    /// Ends standard input, as Ctrl-D does.
    pub(crate) fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The next line, or nothing if there is no other.
    fn next_line(&mut self) -> Option<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.printed.recv_timeout(left) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => self.fail("no more lines, and no end, in time"),
        }
    }

    /// Waits for a line that contains `text`, and gives what comes after the text.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        while let Some(line) = self.next_line() {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim().to_string();
            }
        }
        self.fail(&format!("ended without a line with {text:?}"))
    }

    /// Waits for the end, and gives what was printed since the program started.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        self.end_input();
        while self.next_line().is_some() {}
        // Its pipes are closed, so it is about to exit.
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                return (status, self.seen.join("\n"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.fail("has closed its output but does not exit")
    }

    /// Waits for the end, which must be a good one, and gives what was printed since the program
    /// started.
    #[track_caller]
    pub(crate) fn succeed(self) -> String {
        let name = self.name.clone();
        let (status, printed) = self.end();
        assert!(status.success(), "{name} ended with {status}. It printed:\n{printed}\n");
        printed
    }

    /// Sends a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the program can be signalled");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs an example to its good end, and gives what it printed.
#[track_caller]
pub(crate) fn run(name: &str, args: &[&str]) -> String {
    Program::example(name, args).succeed()
}

#[track_caller]
pub(crate) fn assert_has(printed: &str, text: &str) {
    assert!(printed.contains(text), "no {text:?} in what was printed:\n{printed}\n");
}

/// An example that nobody runs would rot: `tests` runs all that are in the folder, which say how to
/// run them.
#[track_caller]
pub(crate) fn assert_all_run(folder: &str, tests: &str) {
    let mut examples = 0;
    for entry in fs::read_dir(folder).expect("the directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        examples += 1;
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name in UTF-8");
        let text = fs::read_to_string(&path).expect("the example");
        assert!(tests.contains(&format!("\"{name}\"")), "no test runs {name}");
        assert!(text.starts_with("//! "), "{name} does not say what it is");
        // `cargo run --example NAME`, with `--release` where speed is the point, or an alias.
        assert!(
            text.contains(&format!("--example {name}")) || text.contains(&format!("cargo {name}")),
            "{name} does not say how to run it"
        );
        assert!(text.lines().count() <= 110, "{name} is too long");
    }
    assert!(examples > 0, "no examples in {folder}");
}
