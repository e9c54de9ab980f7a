//! Every example runs, on a free port, against a real peer: a client of ours, or curl where it is
//! installed. (Those that need TLS or another runtime have their tests beside them, in
//! `examples/ecosystem`.)
//!
//! The programs are those that `cargo test` has built. After a change to an example alone, `cargo
//! test --test examples` runs the old one: say `cargo build --examples` first.

mod common_examples;

use common_examples::{ANY_PORT, LIMIT, Program, assert_all_run, assert_has, run};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;

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
fn web_crawler_visits_each_page_of_a_site_once() {
    let printed = run("web-crawler", &[]);
    assert_has(&printed, "\n101 pages"); // "/" and "/0" to "/99"
    assert_eq!(printed.matches(" bytes").count(), 101, "{printed}");
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
    // Nobody has typed anything, and a thread of the program still waits for it; that must not hold
    // up the exit.
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

#[test]
fn every_example_is_run_here_and_says_what_it_is_and_how_to_run_it() {
    assert_all_run("examples", include_str!("examples.rs"));
}
