//! Processes: their ends are noticed, all of them and by everyone who waits; their pipes are
//! handles like others; no zombie stays.

#![cfg(unix)]

mod common;

use common::{eventually, foreign_block_on, fresh_process, fresh_processes, within};
use smol::{Async, Executor, Task, Timer, block_on, future, prelude::*, spawn, timeout};
use std::{
    io::ErrorKind,
    os::unix::process::ExitStatusExt,
    pin::pin,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

const MS: Duration = Duration::from_millis(1);

/// A shell that runs `script`, with all its three streams piped.
fn sh(script: &str) -> Async<Child> {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Async::<Child>::spawn(&mut command).unwrap()
}

fn quiet(program: &str, args: &[&str]) -> Async<Child> {
    Async::<Child>::spawn(Command::new(program).args(args).stdin(Stdio::null())).unwrap()
}

/// The states of this process's children, as `ps` shows them.
#[cfg(target_os = "linux")]
fn children() -> Vec<char> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap();
    let stats =
        processes.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            // pid (name) state parent …
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let state = fields.next()?.chars().next()?;
            (fields.next()? == own).then_some(state)
        })
        .collect()
}

// ---------- ends ----------

#[test]
fn the_status_of_a_process_is_how_it_ended() {
    within(20, || {
        block_on(async {
            assert!(quiet("true", &[]).status().await.unwrap().success());
            assert_eq!(quiet("sh", &["-c", "exit 7"]).status().await.unwrap().code(), Some(7));
            assert_eq!(
                quiet("sh", &["-c", "kill -TERM $$"]).status().await.unwrap().signal(),
                Some(15)
            );
            let child = quiet("sh", &["-c", "exit 3"]);
            for _ in 0..3 {
                assert_eq!(
                    child.status().await.unwrap().code(),
                    Some(3),
                    "it can be asked for again"
                );
            }
            assert!(format!("{child:?}").contains("Child"));
        });
    });
}

#[test]
fn waiting_takes_as_long_as_the_process_runs_and_others_go_on() {
    within(20, || {
        block_on(async {
            let child = sh("read line; exit 5");
            let mut stdin = child.take_stdin().unwrap();
            let mut status = pin!(child.status());
            assert!(future::poll_once(status.as_mut()).await.is_none());
            Timer::after(5 * MS).await;
            assert!(future::poll_once(status.as_mut()).await.is_none());
            stdin.write_all(b"go\n").await.unwrap();
            assert_eq!(status.await.unwrap().code(), Some(5));
        });
    });
}

#[test]
fn a_program_that_does_not_exist_is_an_error() {
    let error = Async::<Child>::spawn(&mut Command::new("/no/such/program")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = Async::<Child>::spawn(&mut Command::new("/dev/null")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn kill_ends_a_process_once_and_never_another_one() {
    within(20, || {
        block_on(async {
            let child = quiet("sleep", &["1000"]);
            assert!(child.id() > 0);
            child.kill().unwrap();
            assert_eq!(child.status().await.unwrap().signal(), Some(9));
            assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::InvalidInput);
            // One that ended by itself and was waited for.
            let child = quiet("true", &[]);
            child.status().await.unwrap();
            assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::InvalidInput);
            assert!(child.status().await.unwrap().success());
        });
    });
}

#[test]
fn a_process_can_be_killed_while_others_wait_for_it() {
    within(20, || {
        let child = quiet("sleep", &["1000"]);
        let waiters: Vec<_> = (0..10)
            .map(|_| {
                let child = child.clone();
                spawn(async move { child.status().await.unwrap().signal() })
            })
            .collect();
        thread::scope(|s| {
            let elsewhere = s.spawn(|| foreign_block_on(child.status()).unwrap().signal());
            block_on(Timer::after(5 * MS));
            child.kill().unwrap();
            assert_eq!(elsewhere.join().unwrap(), Some(9));
        });
        foreign_block_on(async {
            for waiter in waiters {
                assert_eq!(waiter.await, Some(9), "all who wait are told");
            }
        });
    });
}

#[test]
fn a_wait_that_was_given_up_can_be_taken_up_again() {
    within(20, || {
        block_on(async {
            let child = quiet("sh", &["-c", "sleep 0.05; exit 4"]);
            for _ in 0..10 {
                assert!(
                    future::poll_once(child.status())
                        .await
                        .is_none_or(|status| status.unwrap().code() == Some(4))
                );
            }
            let _ = timeout(MS, child.status()).await;
            assert_eq!(child.status().await.unwrap().code(), Some(4));
        });
    });
}

/// <https://github.com/alexcrichton/tokio-process/issues/42>
#[test]
fn many_processes_that_end_at_once_are_all_noticed() {
    within(60, ten_by_ten);
}

/// Ten tasks with ten processes each, which end in no order, five times.
fn ten_by_ten() {
    block_on(async {
        for _ in 0..5 {
            let tasks: Vec<Task<()>> = (0..10)
                .map(|i| {
                    spawn(async move {
                        let command = format!("exit {i}");
                        let children: Vec<_> =
                            (0..10).map(|_| quiet("sh", &["-c", &command])).collect();
                        for child in children {
                            assert_eq!(child.status().await.unwrap().code(), Some(i));
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        }
    });
}

#[test]
fn a_process_is_waited_for_wherever_it_came_from() {
    within(20, || {
        // Started outside of everything, waited for in an executor of one's own, in a task, and
        // under a foreign block_on.
        let executor = Executor::new();
        let child = quiet("sh", &["-c", "exit 2"]);
        let in_executor = executor.spawn(async move { child.status().await.unwrap().code() });
        assert_eq!(foreign_block_on(executor.run(in_executor)), Some(2));
        let child = quiet("sh", &["-c", "exit 3"]);
        assert_eq!(
            foreign_block_on(spawn(async move { child.status().await.unwrap().code() })),
            Some(3)
        );
        let child =
            thread::spawn(|| block_on(async { quiet("sh", &["-c", "exit 4"]) })).join().unwrap();
        assert_eq!(foreign_block_on(child.status()).unwrap().code(), Some(4));
    });
}

/// <https://github.com/smol-rs/async-process/issues/33>
#[cfg(target_os = "linux")]
#[test]
fn a_dropped_child_is_not_killed_and_leaves_no_zombie() {
    fresh_process(30, &[], || {
        let dir = tempfile::tempdir().unwrap();
        let done = |i: i32| dir.path().join(format!("done-{i}"));
        // Dropped while they run, after they ended, and in the middle of a wait.
        for i in 0..20 {
            let child = quiet("sh", &["-c", &format!("sleep 0.2; touch {}", done(i).display())]);
            if i % 2 == 0 {
                let _ = block_on(future::poll_once(child.status()));
            }
        }
        let ended: Vec<_> = (0..10).map(|_| quiet("true", &[])).collect();
        eventually(|| {
            children().iter().filter(|state| **state == 'Z').count() >= 1 || children().len() <= 20
        });
        drop(ended);
        // Nobody drives anything any more.
        eventually(|| children().is_empty());
        for i in 0..20 {
            assert!(done(i).exists(), "child {i} did not come to its end");
        }
    });
}

/// Somebody else reaps all children. <https://github.com/smol-rs/async-process/issues/50>
#[test]
fn a_wait_ends_even_if_somebody_else_reaped_the_process() {
    fresh_process(20, &[], || {
        for round in 0..10 {
            let child = quiet("sh", &["-c", "exit 3"]);
            if round % 2 == 0 {
                while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
            } else {
                thread::spawn(|| {
                    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
                });
            }
            match foreign_block_on(child.status()) {
                Ok(status) => assert_eq!(status.code(), Some(3)),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::CHILD.raw_os_error()))
                }
            }
            // And nobody else gets the signal.
            let _ = child.kill();
        }
    });
}

/// With `SIGCHLD` ignored, the kernel reaps, and the status is lost.
#[test]
fn a_wait_ends_even_if_the_signal_is_ignored() {
    const IGNORED: &str = "SMOL_TEST_SIGCHLD_IGNORED";
    if std::env::var_os(IGNORED).is_some() {
        return within(10, || {
            assert_ignored();
            block_on(async {
                let child = quiet("sh", &["-c", "exit 3"]);
                assert_lost(child.status().await);
                assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::InvalidInput);
                assert_lost(child.status().await);
                assert_lost(sh("echo out").output().await);
            });
        });
    }
    run_with_the_signal_ignored("a_wait_ends_even_if_the_signal_is_ignored", &[(IGNORED, "1")]);
}

/// Runs a test of this file again, with these variables, in a process that ignores `SIGCHLD`.
/// (A shell need not hand that down, and dash does not; perl does.)
fn run_with_the_signal_ignored(test: &str, env: &[(&str, &str)]) {
    let output = Command::new("perl")
        .args(["-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{env:?}\n{text}");
}

fn assert_lost<T: std::fmt::Debug>(status: std::io::Result<T>) {
    let error = status.expect_err("the kernel keeps no status");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::CHILD.raw_os_error()));
}

/// That it is so.
fn assert_ignored() {
    assert_lost(Command::new("true").stdin(Stdio::null()).spawn().unwrap().wait());
}

#[test]
fn kill_is_refused_if_somebody_else_has_waited_for_the_process() {
    within(20, || {
        let (child, input) = until_closed();
        drop(input);
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_lost(child.try_status());
        assert_lost(block_on(child.status()));
    });
}

#[test]
fn kill_is_not_refused_if_the_process_has_just_ended() {
    within(20, || {
        let (child, input) = until_closed();
        drop(input);
        let pid = rustix::process::Pid::from_raw(child.id() as i32);
        let id = rustix::process::WaitId::Pid(pid.unwrap());
        use rustix::process::WaitIdOptions;
        rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        child.kill().unwrap();
        assert_eq!(child.try_status().unwrap().unwrap().code(), Some(3));
        assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn try_status_never_waits_and_leaves_the_standard_input_open() {
    within(20, || {
        block_on(async {
            let child = sh("read line; exit 5");
            assert!(child.try_status().unwrap().is_none());
            assert!(child.try_status().unwrap().is_none());
            let mut stdin = child.take_stdin().expect("it was not closed");
            stdin.write_all(b"go\n").await.unwrap();
            eventually(|| child.try_status().unwrap().is_some());
            assert_eq!(child.try_status().unwrap().unwrap().code(), Some(5));
            assert_eq!(child.status().await.unwrap().code(), Some(5));
        });
    });
}

#[test]
fn signals_reach_the_process_as_long_as_it_is_there() {
    within(20, || {
        block_on(async {
            // One that handles the signal, and says when it is ready to.
            let child = sh("trap 'exit 6' TERM; echo ready; while :; do sleep 0.01; done");
            let mut stdout = smol::io::BufReader::new(child.take_stdout().unwrap());
            stdout.read_line(&mut String::new()).await.unwrap();
            child.signal(15).unwrap();
            assert_eq!(child.status().await.unwrap().code(), Some(6));
            assert_eq!(child.signal(15).unwrap_err().kind(), ErrorKind::InvalidInput);
            // One that does not.
            let child = quiet("sleep", &["1000"]);
            for nonsense in [0, -1, 1000, i32::MIN, i32::MAX] {
                let error = child.signal(nonsense).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
            // (Not SIGINT, which shells have what they run in the background ignore.)
            child.signal(15).unwrap();
            assert_eq!(child.status().await.unwrap().signal(), Some(15));
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn kill_on_drop_kills_when_the_last_handle_goes_and_leaves_no_zombie() {
    fresh_process(20, &[], || {
        for round in 0..20 {
            let child = quiet("sleep", &["1000"]);
            child.kill_on_drop(true);
            if round % 2 == 0 {
                assert!(block_on(future::poll_once(child.status())).is_none());
            }
            let clone = child.clone();
            drop(child);
            assert!(clone.try_status().unwrap().is_none(), "there was another handle");
            drop(clone);
        }
        // A future of `output` is the last handle too.
        let child = quiet("sleep", &["1000"]);
        child.kill_on_drop(true);
        assert!(block_on(timeout(5 * MS, child.output())).is_err());
        eventually(|| children().is_empty());
        // It can be taken back.
        let child = quiet("sleep", &["1000"]);
        child.kill_on_drop(true);
        child.kill_on_drop(false);
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        drop(child);
        assert_eq!(children().len(), 1);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        eventually(|| children().is_empty());
    });
}

#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_kill_on_drop_leaves_no_zombie_either() {
    fresh_processes(20, WORLDS, || {
        enter_world();
        for _ in 0..20 {
            quiet("sleep", &["1000"]).kill_on_drop(true);
        }
        while !children().is_empty() {
            block_on(quiet("true", &[]).status()).unwrap();
        }
    });
}

/// Where no thread can be started, a task for it would be run here, to its end.
#[cfg(target_os = "linux")]
#[test]
fn dropping_a_process_does_not_wait_for_it_and_needs_no_worker() {
    const NO_THREADS: (&str, &str) = ("RUST_MIN_STACK", "70368744177664");
    fresh_processes(20, &[&[], &[NO_THREADS]], || {
        let (child, input) = until_closed();
        drop(child);
        assert!(matches!(children()[..], [state] if state != 'Z'));
        let workers = |name: &String| name.starts_with("smol-") && name != "smol-children";
        assert!(!common::threads().iter().any(workers), "{:?}", common::threads());
        drop(input);
        while !children().is_empty() {
            block_on(quiet("true", &[]).status()).unwrap();
        }
    });
}

/// <https://github.com/smol-rs/async-process/issues/10>
#[test]
fn kill_on_drop_does_not_kill_what_is_waited_for() {
    within(20, || {
        block_on(async {
            for _ in 0..10 {
                let child = sh("sleep 0.01; echo out; exit 0");
                child.kill_on_drop(true);
                let output = child.output().await.unwrap();
                assert!(output.status.success(), "{output:?}");
                assert_eq!(output.stdout, b"out\n");
                let child = sh("sleep 0.01; exit 0");
                child.kill_on_drop(true);
                assert!(child.status().await.unwrap().success());
            }
        });
    });
}

#[test]
fn a_command_can_be_run_to_its_status_or_its_output_in_one_line() {
    within(20, || {
        block_on(async {
            let status = Async::<Child>::run(Command::new("sh").args(["-c", "exit 8"])).await;
            assert_eq!(status.unwrap().code(), Some(8));
            let mut command = Command::new("sh");
            command.args(["-c", "cat; echo out; echo err >&2; exit 9"]).stdin(Stdio::null());
            for _ in 0..2 {
                let output = Async::<Child>::capture(&mut command).await.unwrap();
                assert_eq!(output.status.code(), Some(9));
                assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
            }
            // The standard input is as it was set; a pipe is closed.
            command.stdin(Stdio::piped());
            assert_eq!(Async::<Child>::capture(&mut command).await.unwrap().stdout, b"out\n");
            // It is started at once, and the future is nobody's but ours.
            let run = Async::<Child>::capture(Command::new("echo").arg("hi"));
            drop(command);
            assert_eq!(spawn(run).await.unwrap().stdout, b"hi\n");
            let mut missing = Command::new("/no/such/program");
            let error = Async::<Child>::run(&mut missing).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let error = Async::<Child>::capture(&mut missing).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        });
    });
}

#[test]
fn a_process_cannot_be_taken_out_of_its_handle() {
    within(20, || {
        let child = sh("exit 0");
        let clone = child.clone();
        assert_eq!(child.into_inner().unwrap_err().kind(), ErrorKind::ResourceBusy);
        assert!(block_on(clone.status()).unwrap().success());
        assert_eq!(clone.into_inner().unwrap_err().kind(), ErrorKind::ResourceBusy);
    });
}

// ---------- pipes ----------

#[test]
fn output_collects_what_the_process_says() {
    within(20, || {
        block_on(async {
            let output = sh("echo out; echo err >&2; exit 9").output().await.unwrap();
            assert_eq!(output.status.code(), Some(9));
            assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
            // Nothing piped, nothing collected.
            let output = quiet("true", &[]).output().await.unwrap();
            assert!(
                output.status.success() && output.stdout.is_empty() && output.stderr.is_empty()
            );
            // More than the pipes hold, on both at once.
            let script = "i=0; while [ $i -lt 200 ]; \
                 do printf '%01000d' 0; printf '%01000d' 1 >&2; i=$((i+1)); done";
            let output = sh(script).output().await.unwrap();
            assert_eq!((output.stdout.len(), output.stderr.len()), (200_000, 200_000));
        });
    });
}

#[test]
fn output_closes_the_standard_input_nobody_took() {
    within(20, || {
        block_on(async {
            let output = sh("cat; echo end").output().await.unwrap();
            assert_eq!(output.stdout, b"end\n");
        });
    });
}

/// As std's `wait` does: else a process that reads to the end waits for us, and we for it.
#[test]
fn status_closes_the_standard_input_nobody_took() {
    within(20, || {
        block_on(async {
            assert!(sh("cat; exit 0").status().await.unwrap().success());
        });
    });
}

#[test]
fn output_leaves_out_the_pipes_that_were_taken() {
    within(20, || {
        block_on(async {
            let child = sh("echo out; echo err >&2");
            let mut stdout = child.take_stdout().unwrap();
            let output = child.output().await.unwrap();
            assert_eq!((&*output.stdout, &*output.stderr), (&b""[..], &b"err\n"[..]));
            let mut text = String::new();
            stdout.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "out\n");
        });
    });
}

#[test]
fn each_pipe_can_be_taken_once_and_only_if_there_is_one() {
    within(20, || {
        block_on(async {
            let child = sh("exit 0");
            assert!(
                child.take_stdin().is_some()
                    && child.take_stdout().is_some()
                    && child.take_stderr().is_some()
            );
            assert!(
                child.take_stdin().is_none()
                    && child.take_stdout().is_none()
                    && child.take_stderr().is_none()
            );
            child.status().await.unwrap();
            let child = quiet("true", &[]);
            assert!(
                child.take_stdin().is_none()
                    && child.take_stdout().is_none()
                    && child.take_stderr().is_none()
            );
            child.status().await.unwrap();
        });
    });
}

/// Its ends of the pipes must block, ours must not.
/// <https://github.com/smol-rs/async-process/issues/65>
#[test]
fn a_megabyte_goes_through_a_process_and_back() {
    within(30, || {
        block_on(async {
            let child = sh("cat");
            let (mut stdin, mut stdout) =
                (child.take_stdin().unwrap(), child.take_stdout().unwrap());
            let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
            let writing = spawn({
                let data = data.clone();
                async move { stdin.write_all(&data).await.unwrap() } // and drop: the end of file
            });
            let mut back = Vec::new();
            stdout.read_to_end(&mut back).await.unwrap();
            writing.await;
            assert!(back == data);
            assert!(child.status().await.unwrap().success());
        });
    });
}

#[test]
fn a_pipe_of_a_process_can_be_closed_to_end_its_input() {
    within(20, || {
        block_on(async {
            let child = sh("cat");
            let mut stdin = child.take_stdin().unwrap();
            stdin.write_all(b"the end").await.unwrap();
            stdin.flush().await.unwrap();
            stdin.close().await.unwrap();
            drop(stdin);
            assert_eq!(child.output().await.unwrap().stdout, b"the end");
        });
    });
}

/// <https://github.com/tokio-rs/tokio/issues/2174>
#[test]
fn a_writer_that_waits_for_a_process_learns_of_its_death() {
    within(20, || {
        block_on(async {
            let child = quiet_reader();
            let mut stdin = child.take_stdin().unwrap();
            let writing = spawn(async move { stdin.write_all(&vec![0; 10_000_000]).await });
            Timer::after(5 * MS).await; // it gets stuck on a full pipe
            child.kill().unwrap();
            assert_eq!(writing.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            assert_eq!(child.status().await.unwrap().signal(), Some(9));
        });
    });
}

/// A process that never reads its input.
fn quiet_reader() -> Async<Child> {
    Async::<Child>::spawn(Command::new("sleep").arg("1000").stdin(Stdio::piped())).unwrap()
}

#[test]
fn a_reader_that_waits_for_a_process_sees_each_line_as_it_comes() {
    within(20, || {
        block_on(async {
            let child = sh("while read line; do echo \"got $line\"; done");
            let (mut stdin, stdout) = (child.take_stdin().unwrap(), child.take_stdout().unwrap());
            let mut lines = smol::io::BufReader::new(stdout).lines();
            for i in 0..20 {
                assert!(future::poll_once(lines.next()).await.is_none());
                stdin.write_all(format!("{i}\n").as_bytes()).await.unwrap();
                assert_eq!(lines.next().await.unwrap().unwrap(), format!("got {i}"));
            }
            drop(stdin);
            assert!(lines.next().await.is_none());
            assert!(child.status().await.unwrap().success());
        });
    });
}

#[test]
fn an_output_that_was_given_up_leaves_a_process_that_can_be_waited_for() {
    within(20, || {
        block_on(async {
            let child = quiet("sh", &["-c", "sleep 0.05; exit 6"]);
            let clone = child.clone();
            let _ = timeout(MS, child.output()).await;
            assert_eq!(clone.status().await.unwrap().code(), Some(6));
        });
    });
}

/// <https://github.com/tokio-rs/tokio/issues/3809>
#[cfg(target_os = "linux")]
#[test]
fn a_process_inherits_nothing_of_the_runtime() {
    fresh_process(20, &[], || {
        // What this process was given itself is not ours.
        let listing = || {
            Command::new("ls").arg("/proc/self/fd").stdin(Stdio::null()).output().unwrap().stdout
        };
        let given = listing();
        block_on(async {
            // Everything the runtime may hold: poller, sockets, pidfds, pipes, files.
            let (a, _b) = Async::<std::os::unix::net::UnixStream>::pair().unwrap();
            assert!(future::poll_once(a.readable()).await.is_none());
            let _listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
            let _stream =
                Async::<std::net::TcpStream>::connect(_listener.get_ref().local_addr().unwrap())
                    .await
                    .unwrap();
            let (_accepted, _) = _listener.accept().await.unwrap();
            let _udp = Async::<std::net::UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
            let _file = Async::<std::fs::File>::open("/proc/self/status").await.unwrap();
            let other = sh("read line");
            assert!(future::poll_once(other.status()).await.is_none());
            let stdin = other.take_stdin();
            let of_ours = quiet_listing().output().await.unwrap().stdout;
            assert_eq!(String::from_utf8_lossy(&of_ours), String::from_utf8_lossy(&given));
            assert_eq!(String::from_utf8_lossy(&listing()), String::from_utf8_lossy(&given));
            drop(stdin);
            other.kill().ok();
            other.status().await.unwrap();
        });
    });
}

#[cfg(target_os = "linux")]
fn quiet_listing() -> Async<Child> {
    let mut command = Command::new("ls");
    Async::<Child>::spawn(
        command
            .arg("/proc/self/fd")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn processes_leave_no_descriptors_and_no_threads_behind() {
    fresh_process(30, &[], || {
        let round = || {
            block_on(async {
                sh("echo out").output().await.unwrap();
                let child = sh("exit 0");
                drop((child.take_stdin(), child.take_stdout()));
                child.status().await.unwrap();
                drop(sh("exit 0"));
            });
        };
        (0..3).for_each(|_| round());
        eventually(|| children().is_empty());
        let before = common::open_fds();
        (0..30).for_each(|_| round());
        eventually(|| children().is_empty());
        eventually(|| common::open_fds() <= before);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_start_that_runs_out_of_descriptors_half_way_leaves_nothing_behind() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    fresh_process(30, &[], || {
        let round = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo out"]).stdin(Stdio::piped());
            block_on(Async::<Child>::capture(&mut command))
        };
        // Now the runtime has what it needs.
        round().unwrap();
        block_on(Timer::after(5 * MS));
        eventually(|| children().is_empty());
        let (before, maximum) = (common::open_fds(), getrlimit(Resource::Nofile).maximum);
        let (mut failed, mut worked) = (0, 0);
        for left in 0..16 {
            // More than a shell needs.
            setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum }).unwrap();
            let fill = || std::fs::File::open("/dev/null").ok();
            let mut taken: Vec<_> = std::iter::from_fn(fill).collect();
            taken.truncate(taken.len() - left);
            match round() {
                Ok(output) => {
                    assert_eq!(output.stdout, b"out\n");
                    worked += 1;
                }
                Err(error) => {
                    let exhausted = rustix::io::Errno::MFILE.raw_os_error();
                    assert_eq!(error.raw_os_error(), Some(exhausted));
                    failed += 1;
                }
            }
            drop(taken);
            eventually(|| children().is_empty() && common::open_fds() <= before);
        }
        assert!(failed > 1 && worked > 1, "{failed} {worked}");
    });
}

// ---------- without a pidfd ----------

/// System calls that a kernel may lack or a sandbox forbid, with their numbers here.
#[cfg(target_os = "linux")]
const PIDFD_OPEN: i64 = 434; // the same everywhere
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const WAITID: i64 = 247;
#[cfg(all(target_os = "linux", not(target_arch = "x86_64")))]
const WAITID: i64 = 95;

/// What is not to be had, besides pidfds: the names of the fresh process's variable [`WITHOUT`].
#[cfg(target_os = "linux")]
const WORLDS: &[&[(&str, &str)]] = &[
    &[(WITHOUT, "pidfd_open"), POOL_OF_TWO],
    &[(WITHOUT, "pidfd_open and waitid"), POOL_OF_TWO],
    // Makes every `std::thread` without a stack size of its own fail to start.
    &[(WITHOUT, "pidfd_open and threads"), ("RUST_MIN_STACK", "70368744177664")],
];
#[cfg(target_os = "linux")]
const WITHOUT: &str = "SMOL_TEST_WITHOUT";
#[cfg(target_os = "linux")]
const POOL_OF_TWO: (&str, &str) = ("BLOCKING_MAX_THREADS", "2");

/// Makes the calls named by [`WITHOUT`] fail as on a kernel that has never heard of them.
#[cfg(target_os = "linux")]
fn enter_world() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let world = std::env::var(WITHOUT).unwrap();
    let mut calls = std::collections::BTreeMap::from([(PIDFD_OPEN, Vec::new())]);
    if world.contains("waitid") {
        calls.insert(WAITID, Vec::new());
    }
    let unknown = SeccompAction::Errno(rustix::io::Errno::NOSYS.raw_os_error() as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, unknown, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter_all_threads(&program).unwrap();
    let own = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty());
    assert_eq!(pidfd.unwrap_err(), rustix::io::Errno::NOSYS);
}

/// A process that runs until its standard input is closed, and that input.
fn until_closed() -> (Async<Child>, Async<std::fs::File>) {
    let child = sh("read line; exit 3");
    let stdin = child.take_stdin().unwrap();
    (child, stdin)
}

#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_children_hold_no_threads_of_the_pool() {
    fresh_processes(30, WORLDS, || {
        enter_world();
        block_on(async {
            let (waiters, inputs): (Vec<_>, Vec<_>) = (0..20)
                .map(|_| {
                    let (child, input) = until_closed();
                    (spawn(async move { child.status().await.unwrap().code() }), input)
                })
                .unzip();
            let (dropped, other_inputs): (Vec<_>, Vec<_>) = (0..20).map(|_| until_closed()).unzip();
            drop(dropped);
            assert_eq!(smol::unblock(|| 7).await, 7, "the pool is free");
            Timer::after(5 * MS).await;
            assert_eq!(smol::unblock(|| 8).await, 8);
            assert!(common::threads_named("smol-child") <= 1, "{:?}", common::threads());
            assert_eq!(children().len(), 40);
            drop((inputs, other_inputs));
            for waiter in waiters {
                assert_eq!(waiter.await, Some(3));
            }
            // Where there is no thread, the next one that is started looks at the others.
            while !children().is_empty() {
                quiet("true", &[]).status().await.unwrap();
            }
        });
        eventually(|| common::threads_named("smol-child") == 0);
    });
}

/// Somebody else's child that has ended, and whom nobody waits for as long as this exists.
#[cfg(target_os = "linux")]
struct Zombie(Child);

#[cfg(target_os = "linux")]
impl Zombie {
    fn new() -> Zombie {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take());
        let pid = child.id();
        eventually(|| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z")
        });
        Zombie(child)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Zombie {
    fn drop(&mut self) {
        assert!(self.0.wait().unwrap().success(), "its status was left to us");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_a_zombie_of_somebody_else_costs_nothing_and_delays_nobody() {
    fresh_processes(60, WORLDS, || {
        enter_world();
        let zombie = Zombie::new();
        let (child, input) = until_closed();
        let wait = move || block_on(child.status()).unwrap().code();
        let waiting = thread::Builder::new().stack_size(512 * 1024).spawn(wait).unwrap();
        // What spins runs, or waits for a processor, all the time, however busy the machine is.
        for _ in 0..3 {
            eventually(|| {
                let before = busy_time();
                thread::sleep(200 * MS);
                busy_time().saturating_sub(before) < 50 * MS
            });
        }
        // Others come to their ends meanwhile.
        for _ in 0..20 {
            let other = quiet("sh", &["-c", "exit 4"]);
            assert_eq!(block_on(other.status()).unwrap().code(), Some(4));
        }
        assert!(!waiting.is_finished());
        drop(input);
        assert_eq!(waiting.join().unwrap(), Some(3));
        drop(zombie);
        eventually(|| children().is_empty());
    });
}

/// How long the threads of this process, all together, have run or waited for a processor.
#[cfg(target_os = "linux")]
fn busy_time() -> Duration {
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        // A thread that ends meanwhile is none.
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        Some(text.split_whitespace().take(2).map(|time| time.parse::<u64>().unwrap()).sum::<u64>())
    };
    Duration::from_nanos(
        std::fs::read_dir("/proc/self/task").unwrap().filter_map(of_task).sum::<u64>(),
    )
}

/// Not only at the next look, after half a second.
#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_those_who_wait_are_told_at_once_whoever_sees_the_end_first() {
    fresh_processes(60, WORLDS, || {
        enter_world();
        // Who waits sees it, or we do.
        for we_look in [false, true] {
            let is_slow = |_: &i32| {
                block_on(async {
                    let (child, input) = until_closed();
                    let waiting = spawn({
                        let child = child.clone();
                        async move { child.status().await.unwrap().code() }
                    });
                    assert!(future::poll_once(child.status()).await.is_none());
                    let start = std::time::Instant::now();
                    drop(input);
                    while we_look && child.try_status().unwrap().is_none() {
                        future::yield_now().await;
                    }
                    assert_eq!(waiting.await, Some(3));
                    start.elapsed() > 400 * MS
                })
            };
            // On a busy machine some may be.
            let slow = (0..20).filter(is_slow).count();
            assert!(slow <= 6, "{slow} of 20 were slow; we look: {we_look}");
        }
    });
}

/// Else it lasts as long as they do: the kernel wakes nobody for a child whose status is lost.
#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_a_status_that_somebody_else_took_is_an_error_though_others_run() {
    fresh_processes(30, WORLDS, || {
        enter_world();
        block_on(async {
            let (others, _inputs): (Vec<_>, Vec<_>) = (0..3)
                .map(|_| {
                    let (child, input) = until_closed();
                    (spawn(async move { child.status().await.unwrap() }), input)
                })
                .unzip();
            let (child, input) = until_closed();
            let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
            let steal = move || {
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).is_ok()
            };
            let thief = thread::Builder::new().stack_size(128 * 1024).spawn(steal).unwrap();
            let waiting = spawn(async move { child.status().await });
            Timer::after(5 * MS).await;
            drop(input);
            let status = waiting.await;
            // One of the two has it.
            assert_eq!(status.is_err(), thief.join().unwrap(), "{status:?}");
            for other in &others {
                assert!(!other.is_finished());
            }
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_a_wait_ends_though_the_signal_is_ignored_and_others_run() {
    const IGNORED: &str = "SMOL_TEST_SIGCHLD_IGNORED_WITHOUT_PIDFD";
    if std::env::var_os(IGNORED).is_some() {
        return within(10, || {
            enter_world();
            assert_ignored();
            block_on(async {
                let (other, _input) = until_closed();
                assert!(future::poll_once(other.status()).await.is_none());
                let (child, input) = until_closed();
                assert!(future::poll_once(child.status()).await.is_none());
                Timer::after(5 * MS).await;
                drop(input);
                assert_lost(child.status().await);
            });
        });
    }
    for world in WORLDS {
        run_with_the_signal_ignored(
            "without_pidfds_a_wait_ends_though_the_signal_is_ignored_and_others_run",
            &[*world, &[(IGNORED, "1")]].concat(),
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_all_who_wait_are_told_and_some_give_up() {
    fresh_processes(30, WORLDS, || {
        enter_world();
        let (child, input) = until_closed();
        block_on(async {
            let waiter = || {
                let child = child.clone();
                spawn(async move { child.status().await.unwrap().code() })
            };
            let (staying, leaving): (Vec<_>, Vec<_>) =
                (0..10).map(|_| (waiter(), waiter())).unzip();
            let (waker, wakes) = common::counting_waker();
            let mut cx = std::task::Context::from_waker(&waker);
            let mut given_up = Box::pin(child.status());
            assert!(given_up.as_mut().poll(&mut cx).is_pending());
            let _ = timeout(5 * MS, child.status()).await;
            drop((leaving, given_up));
            let before = wakes.count();
            drop(input);
            for waiter in staying {
                assert_eq!(waiter.await, Some(3));
            }
            assert_eq!(wakes.count(), before, "who has left is not woken");
        });
        assert_eq!(foreign_block_on(child.status()).unwrap().code(), Some(3));
    });
}

#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_a_process_can_be_killed_while_others_wait_for_it() {
    fresh_processes(30, WORLDS, || {
        enter_world();
        block_on(async {
            for _ in 0..10 {
                let child = quiet("sleep", &["1000"]);
                let waiting = spawn({
                    let child = child.clone();
                    async move { child.status().await.unwrap().signal() }
                });
                assert!(future::poll_once(child.status()).await.is_none());
                child.kill().unwrap();
                assert_eq!(waiting.await, Some(9));
                assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        });
    });
}

/// Who waits for it must not hold them: the process would write into a pipe that nobody reads, for
/// ever.
#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_the_pipes_are_closed_with_the_last_handle() {
    fresh_processes(30, WORLDS, || {
        enter_world();
        let talker = sh("while echo y; do :; done 2>/dev/null");
        let reader = sh("cat >/dev/null");
        // Somebody has begun to wait, and gave up.
        assert!(foreign_block_on(future::poll_once(talker.status())).is_none());
        drop((talker, reader));
        while !children().is_empty() {
            block_on(quiet("true", &[]).status()).unwrap();
        }
    });
}

/// <https://github.com/alexcrichton/tokio-process/issues/42>
#[cfg(target_os = "linux")]
#[test]
fn without_pidfds_many_processes_that_end_at_once_are_all_noticed() {
    fresh_processes(60, WORLDS, || {
        enter_world();
        ten_by_ten();
    });
}
