//! Every example runs, on a free port, against a real peer: a client of ours, or curl where it is installed.
//!
//! The programs are those that `cargo test` has built. After a change to an example alone, `cargo test --test examples` runs
//! the old one: say `cargo build --examples` first.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// No example needs nearly as long, even on a busy machine; one that does hangs.
const LIMIT: Duration = Duration::from_secs(60);

const ANY_PORT: &str = "127.0.0.1:0";
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/common/certificate.pem");

/// A running program. Dropping it kills it.
struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it prints, to standard output and standard error alike.
    printed: Receiver<String>,
    /// What has been taken from there, for the message when the test fails.
    seen: Vec<String>,
    deadline: Instant,
}

impl Program {
    /// Starts an example.
    fn example(name: &str, args: &[&str]) -> Program {
        // This test is target/PROFILE/deps/examples-HASH, the examples are target/PROFILE/examples/NAME.
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
        // Everything it may need is found from the root of the project, where a user would be.
        command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
        Program::start(name, &mut command)
    }

    /// Starts curl, or tells that it is not there.
    fn curl(args: &[&str]) -> Option<Program> {
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
    fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        if let Err(error) = stdin.write_all(format!("{line}\n").as_bytes()) {
            self.fail(&format!("cannot type {line:?}: {error}"));
        }
    }

    /// Ends standard input, as Ctrl-D does.
    fn end_input(&mut self) {
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
    fn wait_for(&mut self, text: &str) -> String {
        while let Some(line) = self.next_line() {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim().to_string();
            }
        }
        self.fail(&format!("ended without a line with {text:?}"))
    }

    /// Waits for the end, and gives what was printed since the program started.
    fn end(mut self) -> (ExitStatus, String) {
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

    /// Waits for the end, which must be a good one, and gives what was printed since the program started.
    #[track_caller]
    fn succeed(self) -> String {
        let name = self.name.clone();
        let (status, printed) = self.end();
        assert!(status.success(), "{name} ended with {status}. It printed:\n{printed}\n");
        printed
    }

    /// Sends a signal.
    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) {
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
fn run(name: &str, args: &[&str]) -> String {
    Program::example(name, args).succeed()
}

#[track_caller]
fn assert_has(printed: &str, text: &str) {
    assert!(printed.contains(text), "no {text:?} in what was printed:\n{printed}\n");
}

// ---------- TCP ----------

#[test]
fn tcp_server_echoes_what_tcp_client_types() {
    let mut server = Program::example("tcp-server", &[ANY_PORT]);
    let addr = server.wait_for("Listening on ");

    // Two at the same time: the second is answered although the first is still there.
    let mut first = Program::example("tcp-client", &[&addr]);
    let mut second = Program::example("tcp-client", &[&addr]);
    for (client, line) in [(&mut second, "hello"), (&mut first, "good evening")] {
        client.type_line(line);
        client.wait_for(line);
    }
    first.succeed();
    second.succeed();
}

#[test]
fn tcp_server_echoes_a_megabyte_while_it_is_sent() {
    let mut server = Program::example("tcp-server", &[ANY_PORT]);
    let mut stream =
        TcpStream::connect(server.wait_for("Listening on ")).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 7) as u8).collect();

    let mut writer = stream.try_clone().expect("a second handle");
    let sent = data.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).expect("the echo");
    sending.join().expect("the sending thread").expect("the server reads");
    assert!(echoed == data, "{} bytes came back, not all as they were sent", echoed.len());
}

#[test]
fn chat_server_tells_each_client_what_the_others_say() {
    let mut server = Program::example("chat-server", &[ANY_PORT]);
    let addr = server.wait_for("Listening on ");

    let mut ann = Program::example("chat-client", &[&addr]);
    let ann_name = ann.wait_for("My nickname: ");
    server.wait_for(&format!("{ann_name} has joined"));
    let mut bob = Program::example("chat-client", &[&addr]);
    let bob_name = bob.wait_for("My nickname: ");
    ann.wait_for(&format!("{bob_name} has joined"));

    bob.type_line("Hi Ann!");
    ann.wait_for(&format!("{bob_name} says: Hi Ann!"));
    ann.type_line("Hi Bob!");
    bob.wait_for(&format!("{ann_name} says: Hi Bob!"));

    bob.end_input();
    bob.wait_for("Quit!");
    bob.succeed();
    ann.wait_for(&format!("{bob_name} has left"));

    drop(server);
    ann.wait_for("Server gone!");
    // Its other half still waits for somebody to type; that must not hold up the exit.
    let typist = ann.stdin.take();
    ann.succeed();
    drop(typist);
}

// ---------- HTTP ----------

#[test]
fn simple_server_answers_simple_client_with_and_without_tls() {
    let mut server = Program::example("simple-server", &[ANY_PORT, ANY_PORT]);
    let http = server.wait_for("Listening on http://");
    let https = server.wait_for("Listening on https://");
    let port = https.rsplit(':').next().expect("a port");

    assert_has(&run("simple-client", &[&format!("http://{http}/")]), "Hello from smol!");
    assert_has(&run("simple-client", &[&format!("http://{http}/nowhere")]), "404 Not Found");
    assert_has(&run("simple-client", &[&format!("https://{https}/about")]), "A server by hand.");
    assert_has(&run("simple-client", &[&format!("https://localhost:{port}")]), "Hello from smol!");
}

#[test]
fn simple_server_answers_curl_which_trusts_only_its_certificate() {
    let mut server = Program::example("simple-server", &[ANY_PORT, ANY_PORT]);
    let http = server.wait_for("Listening on http://");
    let https = server.wait_for("Listening on https://");

    if let Some(curl) = Program::curl(&[&format!("http://{http}/")]) {
        assert_has(&curl.succeed(), "Hello from smol!");
    }
    if let Some(curl) = Program::curl(&["--cacert", CERTIFICATE, &format!("https://{https}/")]) {
        assert_has(&curl.succeed(), "Hello from smol!");
    }
    // A client that does not trust it breaks off, and the server goes on.
    if let Some(curl) = Program::curl(&[&format!("https://{https}/")]) {
        assert!(!curl.end().0.success());
        assert_has(&run("simple-client", &[&format!("https://{https}/")]), "Hello from smol!");
    }
}

#[test]
fn hyper_server_answers_hyper_client() {
    let mut server = Program::example("hyper-server", &[ANY_PORT]);
    let url = server.wait_for("Listening on ");

    let page = run("hyper-client", &[&url]);
    assert_has(&page, "answers 200 OK\nHello from smol!");

    let echoes = run("hyper-client", &["--post", "to be echoed", &url, &url, &url]);
    assert_eq!(echoes.matches("answers 200 OK\nto be echoed").count(), 3, "{echoes}");
    assert_has(&echoes, "36 bytes posted");
}

#[test]
fn hyper_server_answers_curl() {
    let mut server = Program::example("hyper-server", &[ANY_PORT]);
    let url = server.wait_for("Listening on ");

    let Some(curl) = Program::curl(&["-i", &url]) else {
        return;
    };
    let page = curl.succeed();
    assert_has(&page, "HTTP/1.1 200 OK");
    assert_has(&page, "Hello from smol!");
    // One connection for two requests, one of them larger than all buffers on the way.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "0123456789abcde\n".repeat(1 << 16);
    fs::write(file.path(), &text).expect("the file is written");
    let upload = format!("@{}", file.path().display());
    let echo = Program::curl(&[
        "--data-binary",
        &upload,
        &url,
        &url,
        "-w",
        "%{num_connects} new connections\n",
    ]);
    let echo = echo.expect("curl was there").succeed();
    assert_eq!(echo.matches("0123456789abcde").count(), 2 << 16);
    assert_has(&echo, "1 new connections");
    assert_has(&echo, "0 new connections");

    let refused = Program::curl(&["-i", "-X", "DELETE", &url]).expect("curl was there").succeed();
    assert_has(&refused, "HTTP/1.1 405 Method Not Allowed");
}

#[test]
fn hyper_server_serves_many_connections_that_stay_open() {
    let mut server = Program::example("hyper-server", &[ANY_PORT]);
    let addr = server.wait_for("Listening on http://");

    let mut clients: Vec<_> = (0..100)
        .map(|_| {
            let stream = TcpStream::connect(&addr).expect("the server listens");
            stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
            BufReader::new(stream)
        })
        .collect();
    for round in 0..20 {
        for client in &mut clients {
            client
                .get_mut()
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .expect("the request is sent");
        }
        for (i, client) in clients.iter_mut().enumerate() {
            let mut line = String::new();
            while line != "Hello from smol!\n" {
                line.clear();
                let n = client.read_line(&mut line).expect("the answer");
                assert!(n > 0, "connection {i} was closed in round {round}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn hyper_server_stops_on_ctrl_c_while_clients_are_connected() {
    let mut server = Program::example("hyper-server", &[ANY_PORT]);
    let addr = server.wait_for("Listening on http://");
    server.wait_for("Stop with Ctrl-C");
    let mut client = TcpStream::connect(addr).expect("the server listens");

    server.signal(rustix::process::Signal::INT);
    server.wait_for("Stopped.");
    server.succeed();
    client.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let end = client
        .read(&mut [0])
        .map_or_else(|error| error.kind(), |_| std::io::ErrorKind::UnexpectedEof);
    assert!(end != std::io::ErrorKind::WouldBlock, "the connection was left open");
}

#[test]
fn hyper_server_says_which_address_is_in_use() {
    let mut first = Program::example("hyper-server", &[ANY_PORT]);
    let addr = first.wait_for("Listening on http://");

    let (status, printed) = Program::example("hyper-server", &[&addr]).end();
    assert!(!status.success());
    assert_has(&printed, "in use");
}

#[test]
fn async_h1_server_answers_async_h1_client_and_curl() {
    let mut server = Program::example("async-h1-server", &[ANY_PORT]);
    let url = server.wait_for("Listening on ");

    let page = run("async-h1-client", &[&format!("{url}/page")]);
    assert_has(&page, "200\nHello from smol and async-h1!");
    server.wait_for("GET ");

    if let Some(curl) = Program::curl(&["-d", "a body that nobody reads", &url, &url]) {
        assert_eq!(curl.succeed().matches("Hello from smol and async-h1!").count(), 2);
    }
}

#[test]
fn web_crawler_visits_each_page_of_a_site_once() {
    let printed = run("web-crawler", &[]);
    assert_has(&printed, "\n101 pages"); // "/" and "/0" to "/99"
    assert_eq!(printed.matches(" bytes").count(), 101, "{printed}");
}

#[test]
fn web_crawler_visits_the_pages_of_simple_server() {
    let mut server = Program::example("simple-server", &[ANY_PORT, ANY_PORT]);
    let addr = server.wait_for("Listening on http://");

    let printed = run("web-crawler", &[&addr]);
    assert_has(&printed, "\n/about: ");
    assert_has(&printed, "\n2 pages");
}

#[test]
fn other_runtimes_fetches_a_page_through_tokio() {
    assert_has(&run("other-runtimes", &[]), "answers 200 OK\nHello from smol!");

    let mut server = Program::example("hyper-server", &[ANY_PORT]);
    let url = server.wait_for("Listening on ");
    assert_has(&run("other-runtimes", &[&url]), "answers 200 OK\nHello from smol!");
}

// ---------- TLS and WebSockets ----------

#[test]
fn tls_server_echoes_what_tls_client_types() {
    let mut server = Program::example("tls-server", &[ANY_PORT]);
    let addr = server.wait_for("Listening on ");

    // Somebody who connects and says nothing holds up nobody.
    let _silent = TcpStream::connect(&addr).expect("the server listens");

    let mut client = Program::example("tls-client", &[&addr]);
    for line in ["hello", "a secret"] {
        client.type_line(line);
        client.wait_for(line);
    }
    client.succeed();
}

#[test]
fn websocket_server_echoes_what_websocket_client_types() {
    let mut server = Program::example("websocket-server", &[ANY_PORT, ANY_PORT]);
    let ws = server.wait_for("Listening on ws://");
    let wss = server.wait_for("Listening on wss://");

    for url in [format!("ws://{ws}/"), format!("wss://{wss}/")] {
        let mut client = Program::example("websocket-client", &[&url]);
        client.wait_for("Connected: 101");
        for line in ["hello", "a second message"] {
            client.type_line(line);
            client.wait_for(&format!("Received: {line}"));
        }
        client.end_input();
        client.wait_for("Closed");
        client.succeed();
        server.wait_for("has left");
    }
}

// ---------- files, processes, standard streams ----------

#[test]
fn read_file_prints_a_file() {
    let printed = run("read-file", &["Cargo.toml"]);
    let file = fs::read_to_string("Cargo.toml").expect("the manifest");
    assert_has(&printed, &format!("Cargo.toml: {} bytes", file.len()));
    assert_has(&printed, "name = \"smol\"");
}

#[test]
fn read_file_tells_when_there_is_no_such_file_or_it_is_a_directory() {
    for path in ["no-such-file", "examples"] {
        let (status, printed) = Program::example("read-file", &[path]).end();
        assert!(!status.success(), "{printed}");
        assert_has(&printed, "Error");
    }
}

#[test]
fn read_dir_lists_a_directory() {
    let printed = run("read-dir", &["examples"]);
    let mut listed: Vec<_> = printed.lines().map(PathBuf::from).collect();
    let entries = fs::read_dir("examples").expect("the directory");
    let mut entries: Vec<_> =
        entries.map(|entry| PathBuf::from(entry.expect("an entry").file_name())).collect();
    listed.sort();
    entries.sort();
    assert_eq!(listed, entries);
}

#[test]
fn process_run_and_process_output_run_a_program() {
    let printed = run("process-run", &["cargo", "--version"]);
    assert_has(&printed, "Started process ");
    assert_has(&printed, "cargo 1.");
    assert_has(&printed, "Ended with exit");

    let printed = run("process-output", &["cargo", "no-such-command"]);
    assert_has(&printed, "Ended with exit");
    assert_has(&printed, "0 bytes of output");
    assert_has(&printed, "no such command");
}

#[test]
fn process_run_tells_when_there_is_no_such_program() {
    let (status, printed) = Program::example("process-run", &["no-such-program"]).end();
    assert!(!status.success());
    assert_has(&printed, "NotFound");
}

#[test]
fn stdin_to_stdout_copies_what_is_typed() {
    let mut copy = Program::example("stdin-to-stdout", &[]);
    // Each line is there before the next is typed: nothing waits for a buffer to fill.
    for line in ["one", "two", "three"] {
        copy.type_line(line);
        copy.wait_for(line);
    }
    assert_has(&copy.succeed(), "14 bytes copied");
}

// ---------- timers and threads ----------

#[test]
fn timer_sleep_sleeps_as_long_as_it_says_and_ticks() {
    let printed = run("timer-sleep", &["50"]);
    let after: Vec<u64> = printed
        .lines()
        .map(|line| line.split(' ').rev().nth(1).and_then(|n| n.parse().ok()).expect("a number"))
        .collect();
    assert_eq!(after.len(), 4, "{printed}");
    for (ticks, after) in (1..).zip(after) {
        assert!(after >= 50 * ticks, "too early:\n{printed}");
    }
}

#[test]
fn timer_timeout_waits_for_a_line_but_not_for_ever() {
    let mut quick = Program::example("timer-timeout", &["3600000"]);
    quick.wait_for("Type a line");
    quick.type_line("here it is");
    assert_has(&quick.succeed(), "You typed 11 bytes: here it is");

    let mut slow = Program::example("timer-timeout", &["20"]);
    slow.wait_for("Too slow");
    // Nobody has typed anything, and a thread of the program still waits for it; that must not hold up the exit.
    let typist = slow.stdin.take();
    slow.succeed();
    drop(typist);
}

#[test]
fn tour_runs_and_is_quiet_in_this_build() {
    let printed = run("tour", &[]);
    assert_has(&printed, "This is the quiet build");
    assert_has(&printed, "a byte arrives");
}

#[test]
fn thread_pool_counts_primes_and_takes_naps() {
    let printed = run("thread-pool", &[]);
    assert_has(&printed, "2262 4203 6057 7837 9592 11301 13010 14683 primes");
    assert_has(&printed, "50 naps of 100 ms in ");
}

// ---------- signals and one system's own ----------

#[cfg(unix)]
#[test]
fn ctrl_c_ends_on_ctrl_c() {
    let mut program = Program::example("ctrl-c", &[]);
    program.wait_for("Waiting for Ctrl-C");
    program.signal(rustix::process::Signal::INT);
    program.wait_for("Done!");
    program.succeed();
}

#[cfg(unix)]
#[test]
fn unix_signal_reloads_on_sighup_and_ends_on_sigint_and_sigterm() {
    use rustix::process::Signal;

    for (signal, name) in [(Signal::INT, "SIGINT: done"), (Signal::TERM, "SIGTERM: done")] {
        let mut program = Program::example("unix-signal", &[]);
        program.wait_for("waits for signals");
        for _ in 0..3 {
            program.signal(Signal::HUP);
            program.wait_for("SIGHUP: reloading");
        }
        program.signal(signal);
        program.wait_for(name);
        program.succeed();
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn linux_inotify_tells_which_files_come_and_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut program =
        Program::example("linux-inotify", &[dir.path().to_str().expect("a path in UTF-8")]);
    program.wait_for("Watching ");

    let path = dir.path().join("new");
    fs::write(&path, "text").expect("the file is written");
    program.wait_for("new: ReadFlags(CREATE)");
    program.wait_for("new: ReadFlags(MODIFY)");
    fs::remove_file(&path).expect("the file is removed");
    program.wait_for("new: ReadFlags(DELETE)");
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn linux_timerfd_sleeps_as_long_as_it_says() {
    let printed = run("linux-timerfd", &["50"]);
    let slept = printed.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    assert!(slept.is_some_and(|millis| millis >= 50), "{printed}");
}

#[test]
fn windows_uds_says_hello_or_that_it_is_for_windows() {
    let printed = run("windows-uds", &[]);
    assert_has(
        &printed,
        if cfg!(windows) { "Hello through a Unix socket!" } else { "only on Windows" },
    );
}

// ---------- all of them ----------

/// An example that nobody runs would rot.
#[test]
fn every_example_is_run_here_and_says_what_it_is_and_how_to_run_it() {
    let this_file = include_str!("examples.rs");
    for entry in fs::read_dir("examples").expect("the directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name in UTF-8");
            let text = fs::read_to_string(&path).expect("the example");
            assert!(this_file.contains(&format!("\"{name}\"")), "no test runs {name}");
            assert!(text.starts_with("//! "), "{name} does not say what it is");
            // `cargo run --example NAME`, with `--release` where speed is the point, or an alias.
            assert!(
                text.contains(&format!("--example {name}"))
                    || text.contains(&format!("cargo {name}")),
                "{name} does not say how to run it"
            );
            assert!(text.lines().count() <= 110, "{name} is too long");
        }
    }
}
