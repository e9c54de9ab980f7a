//! The pool: whatever blocks runs, whoever waits gets the result, `Unblock` counts bytes honestly, and idle threads go home.

mod common;

use common::{
    Flag, counting_waker, eventually, foreign_block_on, fresh_process, fresh_process_output,
    fresh_processes, give_up, within,
};
use smol::{Timer, Unblock, block_on, future, io::SeekFrom, prelude::*, spawn, timeout, unblock};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Seek, Write},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const MS: Duration = Duration::from_millis(1);

// ---------- unblock ----------

#[test]
fn a_closure_runs_elsewhere_and_its_result_comes_back() {
    within(10, || {
        let here = thread::current().id();
        assert_ne!(block_on(unblock(|| thread::current().id())), here);
        assert_ne!(foreign_block_on(unblock(|| thread::current().id())), here);
        assert_ne!(foreign_block_on(spawn(unblock(|| thread::current().id()))), here);
        let name = block_on(unblock(|| thread::current().name().map(str::to_owned)));
        assert!(name.as_deref().unwrap_or_default().starts_with("smol-pool"), "{name:?}");
    });
}

#[test]
fn closures_that_need_each_other_run_at_once() {
    within(30, || {
        // The last time, all of the threads are there and idle.
        for n in [2, 10, 60, 60] {
            let barrier = Arc::new(Barrier::new(n));
            let tasks: Vec<_> = (0..n)
                .map(|_| {
                    let barrier = barrier.clone();
                    unblock(move || _ = barrier.wait())
                })
                .collect();
            block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
    });
}

#[test]
fn a_closure_that_was_started_holds_up_nobody() {
    within(20, || {
        let (release, released) = mpsc::channel::<()>();
        let busy = unblock(move || released.recv().unwrap_err());
        block_on(async {
            Timer::after(MS).await;
            spawn(async {}).await;
            assert_eq!(unblock(|| 1).await, 1);
            assert!(!busy.is_finished());
            drop(release);
            busy.await;
        });
    });
}

#[test]
fn a_hundred_thousand_small_closures_run() {
    within(60, || {
        let sum = Arc::new(AtomicUsize::new(0));
        block_on(async {
            let tasks: Vec<_> = (0..100_000)
                .map(|i| {
                    let sum = sum.clone();
                    unblock(move || _ = sum.fetch_add(i, Ordering::Relaxed))
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 99_999 * 100_000 / 2);
    });
}

/// <https://github.com/smol-rs/blocking/issues/58>
#[test]
fn a_panic_reaches_whoever_awaits_and_no_one_else() {
    within(20, || {
        block_on(async {
            for _ in 0..50 {
                let panicked = AssertUnwindSafe(unblock(|| panic!("mine"))).catch_unwind().await;
                assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"mine"));
            }
            unblock(|| panic!("nobody hears this")).detach();
            assert_eq!(unblock(|| 1).await, 1);
        });
    });
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("dropped");
        }
    }
}

#[test]
fn a_closure_that_panics_when_dropped_does_not_hurt_the_pool() {
    fresh_process(20, &[("BLOCKING_MAX_THREADS", "1")], || {
        for _ in 0..20 {
            let bomb = Bomb;
            unblock(move || {
                let _bomb = bomb;
            })
            .detach();
            // One that is dropped without having run.
            let (release, released) = mpsc::channel::<()>();
            let busy = unblock(move || released.recv().unwrap_err());
            let bomb = Bomb;
            drop(unblock(move || drop(bomb)));
            drop(release);
            block_on(busy);
            assert_eq!(block_on(unblock(|| 1)), 1);
            assert_eq!(foreign_block_on(unblock(|| 2)), 2);
        }
    });
}

#[test]
fn a_closure_that_waits_in_the_queue_is_cancelled_by_a_drop_and_kept_by_detach() {
    fresh_process(20, &[("BLOCKING_MAX_THREADS", "1")], || {
        let (release, released) = mpsc::channel::<()>();
        let (started, starting) = mpsc::channel();
        let busy = unblock(move || {
            started.send(()).unwrap();
            released.recv().unwrap_err()
        });
        starting.recv().unwrap();
        let (dropped, cancelled, detached) = (Flag::new(), Flag::new(), Flag::new());
        let set = |flag: &Arc<Flag>| {
            let flag = flag.clone();
            move || flag.set()
        };
        drop(unblock(set(&dropped)));
        let cancelling = unblock(set(&cancelled));
        unblock(set(&detached)).detach();
        block_on(async {
            let mut cancelling = pin!(cancelling.cancel());
            let _ = future::poll_once(cancelling.as_mut()).await;
            drop(release);
            busy.await;
            assert!(cancelling.await.is_none());
            detached.wait().await;
            unblock(|| ()).await; // whatever was queued before has had its turn
        });
        assert!(!dropped.is_set() && !cancelled.is_set());
    });
}

// ---------- limits ----------

#[test]
fn the_limit_is_kept() {
    fresh_process(30, &[("BLOCKING_MAX_THREADS", "3")], || {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..60)
            .map(|_| {
                let (now, most) = (now.clone(), most.clone());
                unblock(move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(MS);
                    now.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        block_on(async {
            for task in tasks {
                task.await;
            }
        });
        assert!((2..=3).contains(&most.load(Ordering::SeqCst)), "{most:?} at once");
        // All three are there if they are needed.
        let barrier = Arc::new(Barrier::new(3));
        let tasks = [barrier.clone(), barrier.clone(), barrier]
            .map(|barrier| unblock(move || _ = barrier.wait()));
        block_on(async {
            for task in tasks {
                task.await;
            }
        });
        #[cfg(target_os = "linux")]
        assert_eq!(common::threads_named("smol-pool"), 3);
    });
}

/// <https://github.com/tokio-rs/tokio/issues/2006>
#[test]
fn closures_that_wait_for_closures_do_not_starve_each_other() {
    fn nested(depth: u32) -> u32 {
        match depth {
            0 => 0,
            _ => block_on(unblock(move || nested(depth - 1))) + 1,
        }
    }
    fresh_processes(
        30,
        &[&[("BLOCKING_MAX_THREADS", "1")], &[("BLOCKING_MAX_THREADS", "2")]],
        || {
            assert_eq!(foreign_block_on(unblock(|| nested(5))), 6 - 1);
            let tasks: Vec<_> = (0..20).map(|i| unblock(move || nested(i % 5))).collect();
            foreign_block_on(async {
                for (i, task) in (0..20).zip(tasks) {
                    assert_eq!(task.await, i % 5);
                }
            });
        },
    );
}

/// The pool's only thread waits for a task, which waits for the pool.
#[test]
fn closures_that_wait_for_tasks_that_wait_for_closures_come_to_an_end() {
    fresh_processes(
        10,
        &[&[("BLOCKING_MAX_THREADS", "1")], &[("BLOCKING_MAX_THREADS", "2")]],
        || {
            let deep = unblock(|| {
                block_on(spawn(async { unblock(|| block_on(spawn(async { 1 }))).await + 1 }))
            });
            assert_eq!(foreign_block_on(deep), 2);
        },
    );
}

/// Idle threads that are not yet called for the jobs in the queue do not count as somebody who could do one more.
#[test]
fn a_closure_that_waits_for_the_last_of_its_closures_comes_to_an_end_although_idle_threads_wait_for_it_too()
 {
    fresh_process(60, &[("BLOCKING_MAX_THREADS", "5")], || {
        for _ in 0..300 {
            // Five threads, most of which are idle soon after.
            let barrier = Arc::new(Barrier::new(5));
            let meet = |barrier: Arc<Barrier>| unblock(move || _ = barrier.wait());
            let meeting: Vec<_> = (0..5).map(|_| meet(barrier.clone())).collect();
            block_on(async {
                for task in meeting {
                    task.await;
                }
            });

            // One waits for the last of five, and so do the other four, wherever they do not stand in its way.
            block_on(unblock(|| {
                let (here, last) = (thread::current().id(), Flag::new());
                for _ in 0..4 {
                    let last = last.clone();
                    let wait = move || {
                        if thread::current().id() != here {
                            last.wait_blocking();
                        }
                    };
                    unblock(wait).detach();
                }
                let set = last.clone();
                unblock(move || set.set()).detach();
                last.wait_blocking();
            }));
        }
    });
}

/// With threads enough for some of them only; whoever waits for more makes room for them.
#[test]
fn closures_that_hand_in_closures_and_wait_for_them_come_to_an_end() {
    fresh_processes(
        60,
        &[&[("BLOCKING_MAX_THREADS", "1")], &[("BLOCKING_MAX_THREADS", "2")]],
        || {
            for _ in 0..50 {
                // By a channel, of which the pool knows nothing.
                let by_channel = || {
                    let (answer, answers) = mpsc::channel();
                    unblock(move || answer.send(1).unwrap()).detach();
                    answers.recv().unwrap()
                };
                let by_future = || block_on(unblock(|| block_on(unblock(|| 1))));
                // The thread that came for the first wait is not there for the second one.
                let by_both = move || by_future() * by_channel();
                foreign_block_on(async {
                    let tasks: Vec<_> = (0..4)
                        .flat_map(|_| [unblock(by_channel), unblock(by_both), unblock(by_future)])
                        .collect();
                    for task in tasks {
                        assert_eq!(task.await, 1);
                    }
                });
            }
        },
    );
}

/// Up to the limit, they are all there at once.
#[test]
fn closures_that_talk_to_each_other_come_to_an_end_if_the_limit_allows_them_all() {
    fresh_process(30, &[("BLOCKING_MAX_THREADS", "2")], || {
        for _ in 0..200 {
            let (ping, pings) = mpsc::channel();
            let (pong, pongs) = mpsc::channel();
            let one = unblock(move || {
                for i in 0..10 {
                    ping.send(i).unwrap();
                    assert_eq!(pongs.recv().unwrap(), i);
                }
            });
            let two = unblock(move || pings.iter().for_each(|i| pong.send(i).unwrap()));
            block_on(future::zip(one, two));
        }
    });
}

#[test]
fn a_closure_that_hands_in_itself_for_ever_overflows_nothing() {
    fn again(count: Arc<AtomicUsize>, done: Arc<Flag>) {
        match count.fetch_add(1, Ordering::SeqCst) {
            100_000 => done.set(),
            _ => unblock(move || again(count, done)).detach(),
        }
    }
    fresh_processes(
        60,
        &[&[("BLOCKING_MAX_THREADS", "1")], &[("BLOCKING_MAX_THREADS", "2")]],
        || {
            for _ in 0..2 {
                let done = Flag::new();
                again(Arc::default(), done.clone());
                block_on(done.wait());
            }
            assert_eq!(foreign_block_on(unblock(|| 1)), 1);
        },
    );
}

#[test]
fn a_closure_may_hold_a_lock_that_the_closures_it_hands_in_want() {
    fresh_process(30, &[("BLOCKING_MAX_THREADS", "1")], || {
        let shared = Arc::new(Mutex::new(0));
        for _ in 0..20 {
            let shared = shared.clone();
            let tasks = foreign_block_on(unblock(move || {
                let mut held = shared.lock().unwrap();
                let wanting = |_| {
                    let shared = shared.clone();
                    unblock(move || *shared.lock().unwrap() += 1)
                };
                let tasks: Vec<_> = (0..10).map(wanting).collect();
                *held += 1;
                tasks
            }));
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
        assert_eq!(*shared.lock().unwrap(), 20 * 11);
    });
}

/// Threads that were let in beyond the limit go when they are not needed for that any more.
#[cfg(target_os = "linux")]
#[test]
fn after_closures_that_waited_for_closures_the_limit_holds_again() {
    fresh_process(30, &[("BLOCKING_MAX_THREADS", "2")], || {
        fn nested(depth: u32) -> u32 {
            match depth {
                0 => 0,
                _ => block_on(unblock(move || nested(depth - 1))) + 1,
            }
        }
        assert_eq!(foreign_block_on(unblock(|| nested(20))), 20);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..60)
            .map(|_| {
                let (now, most) = (now.clone(), most.clone());
                unblock(move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(MS);
                    now.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        foreign_block_on(async {
            for task in tasks {
                task.await;
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2, "{most:?} at once");
        assert!(common::threads_named("smol-pool") <= 2);
    });
}

#[test]
fn nonsense_limits_are_ignored_or_clamped() {
    fresh_processes(
        20,
        &[
            &[("BLOCKING_MAX_THREADS", "0")],
            &[("BLOCKING_MAX_THREADS", "")],
            &[("BLOCKING_MAX_THREADS", "abc")],
            &[("BLOCKING_MAX_THREADS", "-1")],
            &[("BLOCKING_MAX_THREADS", "1000000000")],
            &[("BLOCKING_MAX_THREADS", "99999999999999999999999999")],
            &[("BLOCKING_MAX_THREADS", " 2 ")],
        ],
        || {
            let tasks: Vec<_> = (0..10).map(|i| unblock(move || i)).collect();
            block_on(async {
                for (i, task) in (0..10).zip(tasks) {
                    assert_eq!(task.await, i);
                }
            });
        },
    );
}

// ---------- idle threads ----------

/// <https://github.com/smol-rs/blocking/issues/75>
#[cfg(target_os = "linux")]
#[test]
fn idle_threads_retire_and_cost_nothing_until_then() {
    fresh_process(40, &[], || {
        let barrier = Arc::new(Barrier::new(50));
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let barrier = barrier.clone();
                unblock(move || _ = barrier.wait())
            })
            .collect();
        foreign_block_on(async {
            for task in tasks {
                task.await;
            }
        });
        assert!(common::threads_named("smol-pool") >= 50);
        let before = common::cpu_time();
        eventually(|| common::threads_named("smol-pool") <= 1);
        let retiring = common::cpu_time() - before;
        let (cpu, switches) = common::idle_cost(500 * MS);
        assert!(switches <= 1 && cpu < 50 * MS, "{switches} wake-ups, {cpu:?}");
        // `eventually` looks a thousand times a second; what is above that is theirs.
        assert!(retiring < Duration::from_secs(3), "{retiring:?}");
        assert_eq!(foreign_block_on(unblock(|| 1)), 1);
    });
}

/// A closure that arrives just as threads time out must find one, or get a new one. <https://github.com/tokio-rs/tokio/issues/8056>
#[test]
fn closures_that_arrive_while_threads_retire_are_not_lost() {
    fresh_process(40, &[], || {
        let full = |n| {
            let barrier = Arc::new(Barrier::new(n));
            let tasks: Vec<_> = (0..n)
                .map(|_| {
                    let barrier = barrier.clone();
                    unblock(move || _ = barrier.wait())
                })
                .collect();
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        };
        full(100);
        // Around the time at which most of them retire.
        let start = Instant::now();
        while start.elapsed() < 3500 * MS {
            if start.elapsed() < 1500 * MS || start.elapsed() > 2500 * MS {
                thread::sleep(2 * MS);
            }
            let pair = [unblock(|| 1), unblock(|| 2)];
            foreign_block_on(async {
                for task in pair {
                    task.await;
                }
            });
            thread::yield_now();
        }
        full(100);
    });
}

// ---------- exit ----------

#[test]
fn a_program_ends_while_closures_still_run() {
    let ended = fresh_process_output(30, &[], || {
        for i in 0..20 {
            unblock(move || {
                loop {
                    thread::sleep(i * MS / 4);
                }
            })
            .detach();
        }
        let mut waiting = Unblock::new(Never);
        block_on(async {
            assert!(timeout(5 * MS, waiting.read(&mut [0; 1])).await.is_err());
        });
    });
    if let Some(ended) = ended {
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.took < Duration::from_secs(10), "{ended:?}");
    }
}

struct Never;

impl Read for Never {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        loop {
            thread::park();
        }
    }
}

/// Runs the calling test again with a standard input of the caller's; says what the process printed.
#[cfg(unix)]
fn with_stdin(test: &str, stdin: impl Into<std::process::Stdio>) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("SMOL_TEST_STDIN", "1")
        .stdin(stdin)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

/// <https://github.com/tokio-rs/tokio/issues/589>
#[cfg(unix)]
#[test]
fn a_pending_read_of_the_standard_input_does_not_hold_up_the_end() {
    if std::env::var_os("SMOL_TEST_STDIN").is_some() {
        return within(20, || {
            block_on(async {
                let mut stdin = Unblock::new(io::stdin());
                assert!(timeout(20 * MS, stdin.read(&mut [0; 8])).await.is_err());
                drop(stdin);
            });
        });
    }
    within(20, || {
        let mut child = with_stdin(
            "a_pending_read_of_the_standard_input_does_not_hold_up_the_end",
            std::process::Stdio::piped(),
        );
        let stdin = child.stdin.take(); // stays open, and silent
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        drop(stdin);
    });
}

#[cfg(unix)]
#[test]
fn a_dropped_reader_of_the_standard_input_has_eaten_nothing_nobody_saw() {
    if std::env::var_os("SMOL_TEST_STDIN").is_some() {
        return within(20, || {
            block_on(async {
                let mut stdin = Unblock::new(io::stdin());
                let mut buffer = [0; 4];
                stdin.read_exact(&mut buffer).await.unwrap();
                assert_eq!(&buffer, b"one\n");
                drop(stdin);
                let mut stdin = Unblock::new(io::stdin());
                stdin.read_exact(&mut buffer).await.unwrap();
                assert_eq!(&buffer, b"two\n");
                drop(stdin);
                let mut line = String::new();
                io::stdin().read_line(&mut line).unwrap();
                assert_eq!(line, "three\n");
                line.clear();
                io::stdin().read_line(&mut line).unwrap();
                assert_eq!(line, "four");
            });
        });
    }
    within(20, || {
        let mut child = with_stdin(
            "a_dropped_reader_of_the_standard_input_has_eaten_nothing_nobody_saw",
            std::process::Stdio::piped(),
        );
        child.stdin.take().unwrap().write_all(b"one\ntwo\nthree\nfour").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
}

/// What is typed after a reader has gone belongs to the next one, even if the first was in the middle of a read.
#[cfg(unix)]
#[test]
fn a_reader_of_the_standard_input_that_was_dropped_while_it_waited_eats_nothing_later() {
    if std::env::var_os("SMOL_TEST_STDIN").is_some() {
        return within(20, || {
            block_on(async {
                for expected in ["late 1\n", "late 2\n", "late 3\n"] {
                    let mut stdin = Unblock::new(io::stdin());
                    let mut buffer = [0; 7];
                    assert!(timeout(5 * MS, stdin.read(&mut buffer)).await.is_err());
                    drop(stdin);
                    println!("dropped");
                    let mut stdin = Unblock::new(io::stdin());
                    stdin.read_exact(&mut buffer).await.unwrap();
                    assert_eq!(buffer, expected.as_bytes());
                }
            });
        });
    }
    within(20, || {
        let mut child = with_stdin(
            "a_reader_of_the_standard_input_that_was_dropped_while_it_waited_eats_nothing_later",
            std::process::Stdio::piped(),
        );
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut lines = io::BufRead::lines(io::BufReader::new(stdout)).map(Result::unwrap);
        for i in 1..=3 {
            assert!(lines.any(|line| line.contains("dropped")), "the child ended early");
            stdin.write_all(format!("late {i}\n").as_bytes()).unwrap();
        }
        assert!(lines.any(|line| line.contains("1 passed")));
        child.wait().unwrap();
    });
}

/// The standard input is shared with the shell that started the program: its flags are not ours to change.
#[cfg(unix)]
#[test]
fn the_standard_input_stays_in_the_mode_it_was_in() {
    if std::env::var_os("SMOL_TEST_STDIN").is_some() {
        return within(20, || {
            block_on(async {
                let mut stdin = Unblock::new(io::stdin());
                let _ = timeout(5 * MS, stdin.read(&mut [0; 8])).await;
                Unblock::new(io::stdout()).flush().await.unwrap();
            });
        });
    }
    within(20, || {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let before = rustix::fs::fcntl_getfl(&reader).unwrap();
        let shared = std::os::fd::OwnedFd::from(reader.try_clone().unwrap());
        let child = with_stdin("the_standard_input_stays_in_the_mode_it_was_in", shared);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(rustix::fs::fcntl_getfl(&reader).unwrap(), before);
        drop(writer);
    });
}

// ---------- Unblock ----------

/// Answers each read with the next script entry; blocks while there is none.
struct Scripted(mpsc::Receiver<io::Result<Vec<u8>>>);

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.recv() {
            Err(_) => Ok(0),
            Ok(answer) => answer.map(|bytes| {
                assert!(bytes.len() <= buffer.len(), "the script has too long lines");
                buffer[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            }),
        }
    }
}

/// A writer whose bytes can be seen, and which fails when told to.
#[derive(Clone, Default)]
struct Shared {
    bytes: Arc<Mutex<Vec<u8>>>,
    errors: Arc<Mutex<VecDeque<ErrorKind>>>,
    flushes: Arc<AtomicUsize>,
}

impl Write for Shared {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Some(kind) = self.errors.lock().unwrap().pop_front() {
            return Err(kind.into());
        }
        let n = buffer.len().min(1000);
        self.bytes.lock().unwrap().extend_from_slice(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.errors.lock().unwrap().pop_front().map_or(Ok(()), |kind| Err(kind.into()))
    }
}

#[test]
fn a_blocking_reader_becomes_an_asynchronous_one() {
    within(20, || {
        block_on(async {
            let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
            let mut reader = Unblock::new(io::Cursor::new(data.clone()));
            let mut back = Vec::new();
            reader.read_to_end(&mut back).await.unwrap();
            assert!(back == data);
            assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
            assert_eq!(reader.read(&mut []).await.unwrap(), 0);
        });
    });
}

#[test]
fn a_reader_that_has_nothing_to_say_holds_up_nobody() {
    within(20, || {
        let (script, lines) = mpsc::channel();
        let mut reader = Unblock::new(Scripted(lines));
        block_on(async {
            let mut buffer = [0; 16];
            assert!(timeout(2 * MS, reader.read(&mut buffer)).await.is_err());
            // The read that nobody waited for loses nothing.
            script.send(Ok(b"first".to_vec())).unwrap();
            assert_eq!(reader.read(&mut buffer).await.unwrap(), 5);
            assert_eq!(&buffer[..5], b"first");
            for _ in 0..50 {
                assert!(future::poll_once(reader.read(&mut buffer[..8])).await.is_none());
                script.send(Ok(b"again".to_vec())).unwrap();
                let mut text = [0; 5];
                reader.read_exact(&mut text).await.unwrap();
                assert_eq!(&text, b"again");
            }
            // A smaller buffer than the one the bytes were read for.
            assert!(future::poll_once(reader.read(&mut buffer)).await.is_none());
            script.send(Ok(b"abcdef".to_vec())).unwrap();
            let mut all = Vec::new();
            for _ in 0..6 {
                let mut byte = [0];
                reader.read_exact(&mut byte).await.unwrap();
                all.extend_from_slice(&byte);
            }
            assert_eq!(all, b"abcdef");
            script.send(Err(ErrorKind::TimedOut.into())).unwrap();
            assert_eq!(reader.read(&mut buffer).await.unwrap_err().kind(), ErrorKind::TimedOut);
            script.send(Ok(b"x".to_vec())).unwrap();
            assert_eq!(reader.read(&mut buffer).await.unwrap(), 1, "an error is told once");
            drop(script);
            assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
        });
    });
}

#[test]
fn bytes_that_were_read_before_an_error_are_told_before_it() {
    within(20, || {
        block_on(async {
            let (script, lines) = mpsc::channel();
            script.send(Ok(b"good".to_vec())).unwrap();
            script.send(Err(ErrorKind::ConnectionAborted.into())).unwrap();
            let mut reader = Unblock::new(Scripted(lines));
            let mut buffer = [0; 16];
            assert_eq!(reader.read(&mut buffer).await.unwrap(), 4);
            assert_eq!(
                reader.read(&mut buffer).await.unwrap_err().kind(),
                ErrorKind::ConnectionAborted
            );
            drop(script);
        });
    });
}

/// <https://github.com/smol-rs/blocking/issues/70>
#[test]
fn what_a_write_counts_has_been_written_and_its_error_is_its_own() {
    within(20, || {
        block_on(async {
            let shared = Shared::default();
            let mut writer = Unblock::new(shared.clone());
            for size in [1, 10, 999, 1000, 1001, 50_000] {
                let before = shared.bytes.lock().unwrap().len();
                let n = writer.write(&vec![1; size]).await.unwrap();
                assert!(n > 0 && n <= size);
                assert_eq!(shared.bytes.lock().unwrap().len(), before + n, "nothing is pending");
            }
            assert_eq!(writer.write(&[]).await.unwrap(), 0);
            for _ in 0..20 {
                shared.errors.lock().unwrap().push_back(ErrorKind::StorageFull);
                assert_eq!(writer.write(b"x").await.unwrap_err().kind(), ErrorKind::StorageFull);
                assert_eq!(writer.write(b"x").await.unwrap(), 1, "an error is told once");
            }
            shared.errors.lock().unwrap().push_back(ErrorKind::BrokenPipe);
            assert_eq!(writer.flush().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            let flushes = shared.flushes.load(Ordering::SeqCst);
            writer.flush().await.unwrap();
            assert!(shared.flushes.load(Ordering::SeqCst) > flushes);
            shared.bytes.lock().unwrap().clear();
            writer.write_all(&[2; 5000]).await.unwrap();
            assert_eq!(shared.bytes.lock().unwrap().len(), 5000);
            writer.close().await.unwrap();
        });
    });
}

#[test]
fn an_error_of_a_write_that_was_given_up_is_not_hidden() {
    struct Gate(mpsc::Receiver<io::Result<()>>);
    impl Write for Gate {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0.recv().unwrap_or(Ok(())).map(|()| buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    within(20, || {
        block_on(async {
            let (gate, passes) = mpsc::channel();
            let mut writer = Unblock::new(Gate(passes));
            assert!(timeout(2 * MS, writer.write_all(b"lost")).await.is_err());
            gate.send(Err(ErrorKind::StorageFull.into())).unwrap();
            drop(gate);
            // One of the next operations must tell.
            let mut told = writer.flush().await.is_err();
            told |= writer.write(b"next").await.is_err();
            assert!(told, "the error of the abandoned write was hidden");
            writer.write_all(b"and on").await.unwrap();
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_never_a_write_of_nothing() {
    within(20, || {
        block_on(async {
            let mut full =
                Unblock::new(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
            for _ in 0..200 {
                assert_eq!(full.write(b"x").await.unwrap_err().kind(), ErrorKind::StorageFull);
                assert_eq!(full.write_all(b"x").await.unwrap_err().kind(), ErrorKind::StorageFull);
            }
            full.flush().await.unwrap();
        });
    });
}

#[test]
fn the_position_is_the_user_s_whatever_was_read_ahead() {
    within(20, || {
        block_on(async {
            let mut file = tempfile::tempfile().unwrap();
            let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
            file.write_all(&data).unwrap();
            file.rewind().unwrap();
            let mut file = Unblock::new(file);
            let mut position = 0;
            for _ in 0..100 {
                match fastrand::u8(0..3) {
                    0 => {
                        position = fastrand::u64(0..90_000);
                        assert_eq!(file.seek(SeekFrom::Start(position)).await.unwrap(), position);
                    }
                    1 => {
                        let back = fastrand::u64(0..=position.min(1000));
                        position -= back;
                        assert_eq!(
                            file.seek(SeekFrom::Current(-(back as i64))).await.unwrap(),
                            position
                        );
                    }
                    _ => {
                        let mut buffer = vec![0; fastrand::usize(1..3000)];
                        let n = file.read(&mut buffer).await.unwrap();
                        assert!(buffer[..n] == data[position as usize..][..n]);
                        position += n as u64;
                    }
                }
                assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), position);
            }
            // A write after a read lands where the reader was, and the file inside agrees.
            file.seek(SeekFrom::Start(10)).await.unwrap();
            file.read_exact(&mut [0; 5]).await.unwrap();
            file.write_all(b"HERE").await.unwrap();
            assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), 19);
            file.seek(SeekFrom::Start(15)).await.unwrap();
            let mut back = [0; 4];
            file.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"HERE");
            assert_eq!(file.with_mut(|file| file.stream_position().unwrap()).await, 19);
            assert_eq!(file.get_mut().await.stream_position().unwrap(), 19);
            assert_eq!(file.into_inner().await.stream_position().unwrap(), 19);
        });
    });
}

#[test]
fn what_is_inside_can_be_used_and_taken_out() {
    within(20, || {
        block_on(async {
            let mut list = Unblock::new(vec![1, 2, 3]);
            let here = thread::current().id();
            let (sum, there) =
                list.with_mut(|list| (list.iter().sum::<i32>(), thread::current().id())).await;
            assert_eq!(sum, 6);
            assert_ne!(there, here);
            list.get_mut().await.push(4);
            let panicked = AssertUnwindSafe(list.with_mut(|_| panic!("mine"))).catch_unwind().await;
            assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"mine"));
        });
        block_on(async {
            // Both wait for an operation that was given up.
            let (script, lines) = mpsc::channel();
            let mut reader = Unblock::new(Scripted(lines));
            assert!(timeout(2 * MS, reader.read(&mut [0; 8])).await.is_err());
            {
                let mut taking = pin!(reader.get_mut());
                assert!(future::poll_once(taking.as_mut()).await.is_none());
                script.send(Ok(b"x".to_vec())).unwrap();
                taking.await;
            }
            drop(script);
            reader.into_inner().await;
        });
    });
}

#[test]
fn an_iterator_becomes_a_stream() {
    within(20, || {
        block_on(async {
            let numbers: Vec<u32> = Unblock::new(0..1000u32).collect().await;
            assert!(numbers.into_iter().eq(0..1000));
            let dir = tempfile::tempdir().unwrap();
            for i in 0..20 {
                std::fs::write(dir.path().join(i.to_string()), "").unwrap();
            }
            let mut entries = Unblock::new(std::fs::read_dir(dir.path()).unwrap());
            let mut count = 0;
            while let Some(entry) = entries.next().await {
                entry.unwrap();
                count += 1;
            }
            assert_eq!(count, 20);
        });
    });
}

#[test]
fn items_of_a_slow_iterator_come_one_by_one_and_none_is_lost() {
    within(20, || {
        block_on(async {
            let (sender, receiver) = mpsc::channel();
            let mut stream = Unblock::new(receiver.into_iter());
            for i in 0..50 {
                assert!(future::poll_once(stream.next()).await.is_none());
                sender.send(i).unwrap();
                assert_eq!(stream.next().await, Some(i));
            }
            drop(sender);
            assert_eq!(stream.next().await, None);
        });
    });
}

#[test]
fn an_item_that_a_dropped_future_has_asked_for_is_the_next_one_also_after_with_mut() {
    within(10, || {
        block_on(async {
            let mut numbers = Unblock::new(0..10);
            give_up(numbers.next());
            numbers.with_mut(|_| ()).await;
            assert_eq!(numbers.next().await, Some(0));
            give_up(numbers.next());
            let _ = numbers.get_mut().await;
            assert_eq!(numbers.next().await, Some(1));
        });
    });
}

/// The end was where the position was then; and a seek that was tried again must be done again.
#[test]
fn what_dropped_futures_have_found_does_not_hold_once_the_position_was_moved() {
    within(10, || {
        block_on(async {
            let mut text = Unblock::new(io::Cursor::new(b"hello".to_vec()));
            for n in 0..4 {
                text.seek(SeekFrom::End(0)).await.unwrap();
                give_up(text.read(&mut [0; 8]));
                match n % 2 {
                    0 => text.get_mut().await.set_position(0),
                    _ => text.with_mut(|text| text.set_position(0)).await,
                }
                assert_eq!(text.read(&mut [0; 8]).await.unwrap(), 5);
                give_up(text.seek(SeekFrom::Start(3)));
                match n % 2 {
                    0 => text.get_mut().await.set_position(0),
                    _ => text.with_mut(|text| text.set_position(0)).await,
                }
                assert_eq!(text.seek(SeekFrom::Start(3)).await.unwrap(), 3);
                assert_eq!(text.read(&mut [0; 8]).await.unwrap(), 2);
            }
        });
    });
}

/// Whoever wants the thing itself comes while it is asked for, under way, or answered.
#[test]
fn what_is_inside_is_lent_and_given_back_also_while_a_dropped_operation_is_on_its_way() {
    within(60, || {
        block_on(async {
            for n in 0..3_000 {
                let mut bytes = Unblock::new(io::Cursor::new(vec![0; 8]));
                assert!(future::poll_once(bytes.write(b"abc")).await.is_none());
                // (Not written if the task had no budget left.)
                if n % 2 == 0 {
                    assert!(matches!(bytes.get_mut().await.position(), 0 | 3));
                }
                assert!(matches!(bytes.into_inner().await.position(), 0 | 3));
            }
        });
    });
}

#[test]
fn the_end_that_a_dropped_read_has_met_is_none_any_more_after_a_write() {
    within(10, || {
        block_on(async {
            let mut bytes = Unblock::new(VecDeque::<u8>::new());
            give_up(bytes.read(&mut [0; 8]));
            bytes.write_all(b"abc").await.unwrap();
            assert_eq!(bytes.read(&mut [0; 8]).await.unwrap(), 3);
        });
    });
}

#[test]
fn an_iterator_that_panics_tells_whoever_asks() {
    within(20, || {
        block_on(async {
            let mut stream = Unblock::new((0..3).map(|i| if i == 1 { panic!("mine") } else { i }));
            assert_eq!(stream.next().await, Some(0));
            let panicked = AssertUnwindSafe(stream.next()).catch_unwind().await;
            assert!(panicked.is_err());
            assert_eq!(unblock(|| 1).await, 1);
        });
    });
}

#[test]
fn dropping_a_busy_unblock_does_not_wait_for_it() {
    within(20, || {
        let (script, lines) = mpsc::channel::<io::Result<Vec<u8>>>();
        let mut reader = Unblock::new(Scripted(lines));
        block_on(async {
            assert!(timeout(2 * MS, reader.read(&mut [0; 8])).await.is_err());
        });
        drop(reader);
        // What was inside is dropped once the operation is over: the other end is told.
        script.send(Ok(b"x".to_vec())).unwrap();
        eventually(|| script.send(Ok(Vec::new())).is_err());
    });
}

#[test]
fn the_waker_that_asked_last_is_woken() {
    within(20, || {
        let (script, lines) = mpsc::channel();
        let mut reader = Unblock::new(Scripted(lines));
        let (first, first_wakes) = counting_waker();
        let (second, second_wakes) = counting_waker();
        for waker in [&first, &second] {
            let mut buffer = [0; 8];
            let mut reading = pin!(reader.read(&mut buffer));
            assert!(reading.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        }
        script.send(Ok(b"x".to_vec())).unwrap();
        eventually(|| second_wakes.count() > 0);
        assert!(first_wakes.count() <= 1);
        assert_eq!(block_on(reader.read(&mut [0; 8])).unwrap(), 1);
    });
}

#[test]
fn an_unblock_can_be_shown_and_sent() {
    fn send<T: Send>(_: &T) {}
    let unblocked = Unblock::new(io::Cursor::new(Vec::<u8>::new()));
    send(&unblocked);
    assert!(format!("{unblocked:?}").contains("Unblock"));
    static USED: AtomicBool = AtomicBool::new(false);
    within(10, || block_on(unblock(|| USED.store(true, Ordering::SeqCst))));
    assert!(USED.load(Ordering::SeqCst));
}

/// A shared terminal or pipe, which somebody else has made non-blocking.
#[cfg(unix)]
#[test]
fn a_standard_output_that_never_waits_is_waited_for() {
    const PLAYED: &str = "SMOL_TEST_STDOUT";
    const NAME: &str = "a_standard_output_that_never_waits_is_waited_for";
    const SIZE: usize = 1_000_000;
    if std::env::var_os(PLAYED).is_some() {
        return within(30, || {
            rustix::io::ioctl_fionbio(io::stdout(), true).unwrap();
            block_on(async {
                let mut stdout = Unblock::new(io::stdout());
                stdout.write_all(&[b'~'; SIZE]).await.unwrap();
                stdout.flush().await.unwrap();
                let stdout = std::fs::File::from(
                    std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned().unwrap(),
                );
                smol::Async::from(stdout).write_all(&[b'~'; SIZE]).await.unwrap();
            });
            rustix::io::ioctl_fionbio(io::stdout(), false).unwrap();
        });
    }
    within(40, || {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(PLAYED, "1")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let (mut all, mut buffer) = (Vec::new(), vec![0; 60_000]);
        loop {
            let n = output.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..n]);
            thread::sleep(MS); // it is faster than we are
        }
        assert_eq!(all.iter().filter(|&&byte| byte == b'~').count(), 2 * SIZE);
        assert!(child.wait().unwrap().success());
    });
}

/// Says WouldBlock now and then, as a descriptor does that somebody else has made non-blocking.
struct Fickle<T>(T, usize);

impl<T> Fickle<T> {
    fn mood(&mut self) -> io::Result<&mut T> {
        self.1 += 1;
        match self.1 % 3 {
            0 => Ok(&mut self.0),
            1 => Err(ErrorKind::WouldBlock.into()),
            _ => Err(ErrorKind::Interrupted.into()),
        }
    }
}

impl<T: Read> Read for Fickle<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.mood()?.read(buffer)
    }
}

impl<T: Write> Write for Fickle<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.mood()?.write(buffer)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.mood()?.flush()
    }
}

#[test]
fn no_operation_of_an_unblock_says_would_block() {
    within(30, || {
        block_on(async {
            let mut reader = Unblock::new(Fickle(io::Cursor::new(vec![1; 20]), 0));
            let mut back = Vec::new();
            assert_eq!(reader.read_to_end(&mut back).await.unwrap(), 20);
            let mut writer = Unblock::new(Fickle(Vec::new(), 0));
            for _ in 0..5 {
                writer.write_all(b"abc").await.unwrap();
                writer.flush().await.unwrap();
            }
            assert_eq!(writer.into_inner().await.0, b"abc".repeat(5));
        });
    });
}

#[test]
fn a_write_that_is_tried_again_after_it_was_given_up_is_done_once() {
    within(20, || {
        block_on(async {
            let shared = Shared::default();
            let mut writer = Unblock::new(shared.clone());
            let mut expected = Vec::new();
            for i in 0..100u8 {
                let line = [i; 10];
                let _ = future::poll_once(writer.write(&line)).await;
                // It may have become longer meanwhile, as in a buffer.
                let longer = [i; 15];
                let n = writer.write(&longer).await.unwrap();
                expected.extend_from_slice(&longer[..n]);
                assert!(n == 10 || n == 15);
                // Something else is not the same.
                let _ = future::poll_once(writer.write(&[i; 3])).await;
                assert_eq!(writer.write(b"else").await.unwrap(), 4);
                expected.extend_from_slice(&[i; 3]);
                expected.extend_from_slice(b"else");
            }
            assert_eq!(*shared.bytes.lock().unwrap(), expected);
        });
    });
}

#[test]
fn a_closure_given_up_does_not_answer_for_the_next_one() {
    within(20, || {
        block_on(async {
            let mut counter = Unblock::new(0u64);
            for i in 0..50 {
                let _ = future::poll_once(counter.with_mut(|n| *n += 1)).await;
                let name = counter.with_mut(|_| "a text, not a number").await;
                assert_eq!(name.len(), 20);
                assert_eq!(counter.with_mut(|n| *n).await, i + 1);
            }
        });
    });
}
