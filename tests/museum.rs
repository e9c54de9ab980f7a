//! Bugs of other runtimes that no other file has a place for, and the table of `tests/README.md`,
//! which says for every bug of the collection by which test it is kept out.

mod common;
mod common_io;

use common::{
    Flag, counting_waker, foreign_block_on, fresh_process, fresh_processes, hook_waker, live_bytes,
    set_on_drop, sleep, socket_pair, within,
};
use smol::{
    Async, Executor, Timer, block_on, future,
    io::{AsyncBufReadExt, BufReader},
    prelude::*,
    scope, spawn, spawn_local, timeout, unblock,
};
use std::{
    alloc::System,
    cell::Cell,
    fs,
    future::poll_fn,
    io,
    path::Path,
    pin::{Pin, pin},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

// ---------- the table ----------

/// What stands in back quotes and looks like `file::test_name`, with the number of its line.
fn citations(page: &str) -> Vec<(usize, &str, &str)> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
    };
    let mut found = Vec::new();
    for (number, line) in page.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            if let Some((file, name)) = quoted.split_once("::") {
                if is_name(file) && is_name(name) {
                    found.push((number + 1, file, name));
                }
            }
        }
    }
    found
}

/// Whether a source file has a test of that name.
fn has_test(source: &str, name: &str) -> bool {
    let head = format!("fn {name}()");
    source.match_indices(&head).any(|(at, _)| {
        let above = source[..at].lines().rev().skip_while(|line| line.trim().is_empty());
        above
            .take_while(|line| line.trim_start().starts_with("#["))
            .any(|line| line.trim() == "#[test]")
    })
}

#[test]
fn every_test_that_the_table_names_exists() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let page = fs::read_to_string(tests.join("README.md")).unwrap();
    let citations = citations(&page);
    assert!(citations.len() > 100, "only {} tests are named", citations.len());
    let missing: Vec<_> = citations
        .into_iter()
        .filter(|(_, file, name)| {
            let source = fs::read_to_string(tests.join(format!("{file}.rs"))).unwrap_or_default();
            !has_test(&source, name)
        })
        .map(|(line, file, name)| format!("line {line}: there is no test {file}::{name}"))
        .collect();
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
}

#[test]
fn every_row_of_the_table_names_a_test_or_says_why_there_is_none() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/README.md");
    let page = fs::read_to_string(page).unwrap();
    let table = page.split("\n## ").filter(|part| part.contains("\n| entry |"));
    let rows = table.flat_map(|part| part.lines()).filter(|line| line.starts_with("| **"));
    let empty: Vec<_> = rows
        .clone()
        .filter(|row| {
            let kept_out_by = row.trim_end_matches('|').rsplit('|').next().unwrap();
            let reasons = ["not here:", "(pending)"];
            citations(kept_out_by).is_empty() && !reasons.iter().any(|r| kept_out_by.contains(r))
        })
        .collect();
    assert!(rows.count() > 100 && empty.is_empty(), "\n{}\n", empty.join("\n"));
}

// ---------- wake-ups that cost a system call ----------

/// How many system calls that write this process has made. Waking a poller is one.
#[cfg(target_os = "linux")]
fn writes() -> Option<u64> {
    // Not every kernel counts them.
    let io = fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("syscw:"))?.trim().parse().ok()
}

#[cfg(target_os = "linux")]
#[test]
fn a_task_woken_by_its_own_timer_does_not_interrupt_the_poller() {
    fresh_process(30, &[], || {
        let ticks = || {
            block_on(async {
                for _ in 0..300 {
                    sleep(MS / 10).await;
                    spawn_local(sleep(MS / 10)).await;
                }
            })
        };
        ticks();
        let Some(before) = writes() else { return };
        ticks();
        let needless = writes().unwrap() - before;
        assert!(needless < 60, "{needless} writes for 600 timers");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn wakes_of_a_thread_that_is_awake_are_not_told_to_the_kernel() {
    fresh_process(30, &[], || {
        // With a timer far away, so that the thread sleeps in the poller whenever it sleeps.
        let wake_much = || {
            let elsewhere = Flag::new();
            let main = poll_fn({
                let elsewhere = elsewhere.clone();
                let mut polls = 0;
                move |cx| {
                    polls += 1;
                    let waker = cx.waker().clone();
                    (0..10_000).for_each(|_| waker.wake_by_ref());
                    // Nor do others who wake it while it is awake.
                    thread::scope(|scope| {
                        scope.spawn(|| (0..10_000).for_each(|_| waker.wake_by_ref()));
                    });
                    // Nor timers that are earlier than those before.
                    for i in (0..1_000).rev() {
                        let mut timer = Timer::after(HOUR + i * MS);
                        assert!(Pin::new(&mut timer).poll(cx).is_pending());
                    }
                    elsewhere.set();
                    if polls == 10 { Poll::Ready(()) } else { Poll::Pending }
                }
            });
            block_on(future::or(main, sleep(HOUR)));
            assert!(elsewhere.is_set());
        };
        wake_much();
        let Some(before) = writes() else { return };
        wake_much();
        let needless = writes().unwrap() - before;
        assert!(needless < 8, "{needless} writes for 200,000 wakes of a thread that is awake");
    });
}

// ---------- a process that is stopped, a handle that is gone ----------

#[cfg(unix)]
#[test]
fn a_process_that_was_stopped_for_a_while_goes_on_where_it_was() {
    use rustix::process::{Signal, getpid, kill_process};
    fresh_process(30, &[], || {
        let mut continues = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("sleep 0.4; kill -CONT {}", getpid().as_raw_nonzero()))
            .spawn()
            .unwrap();
        let (one, mut two) = socket_pair();
        let begin = Instant::now();
        let tick = spawn(async move {
            let mut interval = Timer::interval(50 * MS);
            let mut ticks = Vec::new();
            while begin.elapsed() < 600 * MS {
                ticks.push(interval.next().await.unwrap() - begin);
            }
            ticks
        });
        let byte = spawn(async move {
            let mut one = one;
            one.read_exact(&mut [0]).await.unwrap();
        });
        let short = spawn(sleep(100 * MS));
        // Everybody sleeps, whoever has the poller too.
        foreign_block_on(spawn(async {}));
        kill_process(getpid(), Signal::STOP).unwrap();
        foreign_block_on(async {
            short.await;
            two.write_all(b"x").await.unwrap();
            byte.await;
        });
        let ticks = foreign_block_on(tick);
        assert!(ticks.len() <= 16, "a burst of {} ticks", ticks.len());
        assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
        continues.wait().unwrap();
    });
}

#[cfg(unix)]
#[test]
fn news_of_a_process_that_is_not_its_end_does_not_end_the_wait_for_it() {
    use rustix::process::{Pid, Signal, kill_process};
    within(20, || {
        let mut sleeper = std::process::Command::new("sleep");
        let child = Async::<std::process::Child>::spawn(sleeper.arg("1000")).unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        block_on(async {
            let mut status = pin!(child.status());
            let (waker, wakes) = counting_waker();
            for signal in [Signal::STOP, Signal::CONT, Signal::STOP, Signal::CONT] {
                kill_process(pid, signal).unwrap();
                for _ in 0..5 {
                    // Polled without reason, and by ever other wakers.
                    let cx = &mut Context::from_waker(&waker);
                    assert!(status.as_mut().poll(cx).is_pending());
                    assert!(future::poll_once(status.as_mut()).await.is_none());
                    Timer::after(MS).await;
                }
            }
            assert!(wakes.count() < 50, "{} wakes", wakes.count());
            child.kill().unwrap();
            assert!(!status.await.unwrap().success());
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_handle_that_is_gone_keeps_no_timer_and_no_other_handle_from_waking() {
    use std::os::fd::AsRawFd;
    fresh_process(20, &[], || {
        for _ in 0..20 {
            let (gone, _peer) = socket_pair();
            let (mut one, mut two) = socket_pair();
            let number = gone.get_ref().as_raw_fd();
            let (waiting, _) = counting_waker();
            let mut readable = Box::pin(gone.readable());
            let mut writer = Box::pin(two.write_all(b"x"));
            assert!(readable.as_mut().poll(&mut Context::from_waker(&waiting)).is_pending());
            // In one turn of the reactor: a timer that is due, bytes for another handle, and a
            // handle that nobody can register again, because its number is closed.
            let timer = sleep(2 * MS);
            let main = async {
                close(number);
                future::zip(timer, async { one.read_exact(&mut [0]).await.unwrap() }).await;
            };
            foreign_block_on(async {
                writer.as_mut().await.unwrap();
                main.await;
            });
            drop(readable);
            // The number goes to another file, so that std does not close one that is not open.
            let mut others = Vec::new();
            loop {
                let null = fs::File::open("/dev/null").unwrap();
                if null.as_raw_fd() == number {
                    break std::mem::forget(null);
                }
                others.push(null);
            }
            drop(gone);
        }
    });

    /// Closes a descriptor by its number, as signal-hook does with the pipes that it was given.
    fn close(number: std::os::fd::RawFd) {
        use signal_hook::{consts::SIGUSR2, low_level};
        let id = low_level::pipe::register_raw(SIGUSR2, number).unwrap();
        assert!(low_level::unregister(id));
    }
}

// ---------- many workers, many jobs ----------

#[test]
fn workers_that_are_all_asleep_are_all_running_after_as_many_spawns() {
    fresh_processes(30, &[&[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "5")]], || {
        let workers: usize = std::env::var("SMOL_THREADS").unwrap().parse().unwrap();
        for round in 0..50 {
            // Each blocks its worker until all run. A wake-up that is only passed on by a task
            // that comes to its end would never reach the last of them.
            let barrier = Arc::new(Barrier::new(workers));
            let task = |barrier: Arc<Barrier>| async move {
                barrier.wait();
            };
            let spawn_all =
                || (0..workers).map(|_| spawn(task(barrier.clone()))).collect::<Vec<_>>();
            let all = if round % 2 == 0 {
                spawn_all()
            } else {
                let barrier = barrier.clone();
                foreign_block_on(spawn(async move {
                    (0..workers).map(|_| spawn(task(barrier.clone()))).collect::<Vec<_>>()
                }))
            };
            foreign_block_on(async {
                for task in all {
                    task.await;
                }
            });
        }
    });
}

#[test]
fn a_long_queue_of_jobs_costs_little_each_and_nothing_afterwards() {
    fresh_process(60, &[("BLOCKING_MAX_THREADS", "1")], || {
        const JOBS: isize = 200_000;
        let ran = Arc::new(AtomicUsize::new(0));
        let fill_and_empty = |ran: &Arc<AtomicUsize>| {
            let gate = Arc::new(Mutex::new(()));
            let closed = gate.lock().unwrap();
            let before = live_bytes();
            let jobs: Vec<_> = (0..JOBS)
                .map(|_| {
                    let (gate, ran) = (gate.clone(), ran.clone());
                    unblock(move || {
                        drop(gate.lock());
                        ran.fetch_add(1, Ordering::Relaxed);
                    })
                })
                .collect();
            let each = (live_bytes() - before) / JOBS;
            assert!(each < 400, "{each} bytes for a job that waits");
            drop(closed);
            foreign_block_on(async {
                for job in jobs {
                    job.await;
                }
            });
        };
        fill_and_empty(&ran);
        let before = live_bytes();
        fill_and_empty(&ran);
        assert_eq!(ran.load(Ordering::Relaxed), 2 * JOBS as usize);
        common::eventually(|| live_bytes() - before < 500_000);
    });
}

// ---------- references that go at the worst moment ----------

#[test]
fn the_last_reference_to_an_executor_may_go_in_the_wake_of_its_driver() {
    within(20, || {
        for _ in 0..200 {
            let (ex, dropped) = (Arc::new(Executor::new()), Flag::new());
            let on_drop = set_on_drop(&dropped);
            let wakers = Arc::new(Mutex::new(None::<Waker>));
            let theirs = wakers.clone();
            ex.spawn(async move {
                let _on_drop = on_drop;
                poll_fn(|cx| {
                    *theirs.lock().unwrap() = Some(cx.waker().clone());
                    Poll::<()>::Pending
                })
                .await
            })
            .detach();
            assert!(ex.try_tick());
            // The driver owns the executor, and is owned by the waker that it leaves there.
            type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;
            let driver = Arc::new(Mutex::new(None::<Driver>));
            let mut drives: Driver = Box::pin(async move { ex.tick().await });
            let waker = hook_waker({
                let driver = driver.clone();
                move || {
                    let driver = driver.lock().unwrap().take();
                    drop(driver);
                }
            });
            // (The first time, it may have done so much that it lets others run before it sleeps.)
            for _ in 0..2 {
                assert!(drives.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
            *driver.lock().unwrap() = Some(drives);
            // The schedule of the task calls the driver, which drops the queue the ticket is in.
            wakers.lock().unwrap().take().unwrap().wake();
            assert!(driver.lock().unwrap().is_none(), "the driver was not called");
            drop(waker);
            assert!(dropped.is_set(), "the task outlives its executor");
        }
    });
}

#[test]
fn a_line_is_not_lost_when_the_wait_for_it_was_given_up() {
    within(20, || {
        block_on(async {
            let (one, two) = socket_pair();
            let text: String = (0..100).map(|i| format!("line {i}\n")).collect();
            let (mut bytes, mut two) = (text.bytes(), Some(two));
            let mut lines = BufReader::new(one).lines();
            let mut read = String::new();
            // The next byte is written when the wait for it has been given up.
            loop {
                match future::poll_once(lines.next()).await {
                    Some(None) => break,
                    Some(Some(line)) => read.extend([line.unwrap().as_str(), "\n"]),
                    None => match bytes.next() {
                        Some(byte) => two.as_mut().unwrap().write_all(&[byte]).await.unwrap(),
                        None => drop(two.take()),
                    },
                }
            }
            assert_eq!(read, text);
        });
    });
}

#[test]
fn children_of_a_scope_that_are_always_ready_progress_alike() {
    within(20, || {
        let turns = [const { Cell::new(0u32) }; 4];
        block_on(scope(async |s| {
            let begin = Instant::now();
            for turn in &turns {
                drop(s.spawn(async move {
                    loop {
                        turn.set(turn.get() + 1);
                        future::yield_now().await;
                    }
                }));
            }
            while begin.elapsed() < 50 * MS {
                future::yield_now().await;
            }
            s.cancel();
        }));
        let turns = turns.map(Cell::into_inner);
        let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
        assert!(*least > 0 && most - least <= 2, "{turns:?}");
    });
}

#[test]
fn a_timeout_of_a_future_that_finishes_at_that_moment_has_its_result() {
    within(20, || {
        let mut both_were_due = 0;
        while both_were_due < 20 {
            let polls = Cell::new(0);
            let result = foreign_block_on(timeout(10 * MS, async {
                polls.set(1);
                future::yield_now().await;
                polls.set(2);
                thread::sleep(11 * MS);
                1
            }));
            // A machine that is slow enough lets the time pass before the first poll is over.
            if polls.get() == 2 {
                assert_eq!(result, Ok(1));
                both_were_due += 1;
            }
        }
    });
}

// ---------- what cannot be written ----------

#[test]
fn nothing_hands_out_a_handle_that_could_be_replaced_under_the_reactor() {
    // An inherent method, or an impl of these traits, would win over this one, or be ambiguous.
    trait NoWayIn {
        fn get_mut(&mut self) -> &'static str {
            "no get_mut"
        }
        fn as_mut(&mut self) -> &'static str {
            "no as_mut"
        }
        fn deref_mut(&mut self) -> &'static str {
            "no deref_mut"
        }
        fn with_mut(&mut self) -> &'static str {
            "no with_mut"
        }
    }
    impl<T> NoWayIn for Async<T> {}
    let (mut one, _two) = socket_pair();
    let ways = [one.get_mut(), one.as_mut(), one.deref_mut(), one.with_mut()];
    assert!(ways.iter().all(|way| way.starts_with("no ")));
}

#[test]
fn an_error_of_the_reactor_s_handle_is_told_to_each_who_waits() {
    // A reset is one event, and everybody who waits hears of it: readers, writers, whoever asked
    // whether it is readable, and those who come later.
    within(20, || {
        let (one, two) = socket_pair();
        common_io::fill(one.get_ref());
        let mut waiters: Vec<_> = (0..6)
            .map(|i| {
                let mut one = one.clone();
                spawn(async move {
                    match i % 3 {
                        0 => one.read(&mut [0; 16]).await.is_err(),
                        1 => one.write(b"x").await.is_err(),
                        _ => one.readable().await.is_ok(),
                    }
                })
            })
            .collect();
        for waiter in &mut waiters {
            assert!(foreign_block_on(future::poll_once(waiter)).is_none());
        }
        let socket = socket2::SockRef::from(two.get_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(two);
        let mut heard = 0;
        for waiter in waiters {
            heard += foreign_block_on(waiter) as u32;
        }
        // A reset is told once by the kernel; the others hear of the end.
        assert!(heard >= 3, "only {heard} of 6 heard of the reset");
        let again = foreign_block_on(async { (&one).write(b"x").await });
        assert!(matches!(
            again.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        ));
    });
}
