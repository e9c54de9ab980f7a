//! An idle program makes no wake-ups and uses no processor time, whatever waits; idle threads of the pool retire.
#![cfg(target_os = "linux")] // measured with /proc

mod common;

use common::{
    Flag, eventually, foreign_block_on, fresh_process, fresh_processes, idle_cost, sleep,
    socket_pair, threads, threads_named,
};
use smol::{
    Async, Executor, Timer, block_on, future,
    io::{AsyncReadExt, AsyncWriteExt},
    spawn, spawn_local, unblock,
};
use std::{
    fs,
    future::pending,
    io::Write,
    os::unix::net::UnixStream,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Fails if this process does anything in the next second.
#[track_caller]
fn assert_idle() {
    assert_wakes(3);
}

#[track_caller]
fn assert_wakes(limit: u64) {
    let (cpu, wakes) = idle_cost(Duration::from_secs(1));
    assert!(wakes <= limit, "{wakes} wake-ups while idle; threads: {:?}", threads());
    assert!(cpu < Duration::from_millis(50), "{cpu:?} of processor time while idle");
}

#[test]
fn ten_thousand_idle_sockets_and_timers_make_no_wake_ups() {
    fresh_process(40, &[], || {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let pairs = (limit.maximum.unwrap_or(u64::MAX).saturating_sub(100) / 2).min(5_000);
        for _ in 0..pairs {
            for mut socket in
                <[_; 2]>::from(UnixStream::pair().unwrap()).map(|std| Async::new(std).unwrap())
            {
                spawn(async move {
                    let byte = async { drop(socket.read(&mut [0]).await) };
                    future::or(byte, sleep(HOUR)).await;
                })
                .detach();
            }
        }
        foreign_block_on(spawn(async {}));
        assert_idle();
    });
}

#[test]
fn threads_that_wait_in_block_on_of_whatever_kind_make_no_wake_ups() {
    fresh_process(40, &[], || {
        let waiting = Arc::new(Barrier::new(6));
        for i in 0..5 {
            let waiting = waiting.clone();
            thread::spawn(move || {
                let (_one, two) = socket_pair();
                let wait = async {
                    waiting.wait();
                    match i {
                        0 => sleep(HOUR).await,
                        1 => drop(two.readable().await),
                        2 => pending().await,
                        3 => Executor::new().run(pending()).await,
                        _ => spawn(sleep(HOUR)).await,
                    }
                };
                if i % 2 == 0 { foreign_block_on(wait) } else { block_on(wait) }
            });
        }
        waiting.wait();
        assert_idle();
    });
}

#[test]
fn a_foreign_block_on_alone_makes_no_wake_ups() {
    fresh_process(40, &[], || {
        for kind in 0..2 {
            thread::spawn(move || {
                let (_one, two) = socket_pair();
                let short = Timer::after(Duration::from_millis(1)); // so that what polls for it has been at work
                foreign_block_on(async {
                    short.await;
                    if kind == 0 { sleep(HOUR).await } else { two.readable().await.unwrap() }
                });
            });
        }
        assert_idle();
    });
}

#[test]
fn everything_is_quiet_again_after_a_storm() {
    fresh_processes(40, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "4")]], || {
        let _far = spawn(sleep(HOUR));
        let tasks: Vec<_> = (0..10_000)
            .map(|i| {
                spawn(async move {
                    future::yield_now().await;
                    match i % 100 {
                        0 => sleep(Duration::from_millis(i % 7)).await,
                        1 => unblock(thread::yield_now).await,
                        2 => thread::sleep(Duration::from_millis(2)), // blocks its worker: spares may come
                        _ => {}
                    }
                })
            })
            .collect();
        block_on(async {
            for task in tasks {
                task.await;
            }
        });
        // The pool's threads wait once, until they retire.
        eventually(|| threads_named("smol-pool") == 0);
        assert_idle();
    });
}

#[test]
fn a_thread_that_only_waits_for_a_local_timer_makes_no_wake_ups() {
    fresh_process(40, &[], || {
        thread::spawn(|| {
            block_on(async {
                let (_one, two) = socket_pair();
                let _task = spawn_local(async move { two.readable().await });
                Timer::after(HOUR).await
            })
        });
        assert_idle();
    });
}

#[test]
fn two_waiters_on_one_socket_make_no_wake_ups() {
    fresh_process(40, &[], || {
        let (_one, two) = socket_pair();
        for _ in 0..5 {
            let mut two = two.clone();
            spawn(async move { drop(two.read(&mut [0]).await) }).detach();
        }
        let mut reader = two.clone();
        thread::spawn(move || block_on(future::zip(reader.read(&mut [0]), two.readable())));
        assert_idle();
    });
}

#[test]
fn cancelled_timers_and_tasks_leave_nothing_that_wakes() {
    fresh_process(40, &[], || {
        foreign_block_on(async {
            for i in 0..1000 {
                let soon = Duration::from_millis(200 + i);
                let _ = smol::timeout(
                    soon,
                    spawn(async move { future::or(sleep(soon), future::yield_now()).await }),
                )
                .await;
            }
        });
        // The thousand timers would have been due in the next second, each at a moment of its own. The thread in the poller may
        // still mean to get up for one of them.
        assert_wakes(100);
    });
}

#[test]
fn idle_threads_of_the_pool_retire() {
    fresh_process(40, &[], || {
        let before = threads().len();
        let together = Arc::new(Barrier::new(50));
        let jobs: Vec<_> = (0..50)
            .map(|_| {
                let together = together.clone();
                unblock(move || {
                    together.wait();
                })
            })
            .collect();
        foreign_block_on(async {
            for job in jobs {
                job.await;
            }
        });
        assert!(threads_named("smol-pool") > 0, "{:?}", threads());
        eventually(|| threads().len() <= before + 1); // under the watchdog
        assert_idle();
        // And the pool grows again.
        assert_eq!(foreign_block_on(unblock(|| 1)), 1);
    });
}

#[test]
fn spare_workers_do_not_stay_when_the_blocked_ones_come_back() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        foreign_block_on(spawn(async {}));
        let baseline = threads().len();
        for _ in 0..3 {
            let release = Flag::new();
            let tasks: Vec<_> = (0..6)
                .map(|_| {
                    let release = release.clone();
                    spawn(async move { release.wait_blocking() })
                })
                .collect();
            // All six block; what is needed to run the next one is started.
            foreign_block_on(spawn(async {}));
            release.set();
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
        let now = threads().len();
        assert!(now <= baseline + 8, "{baseline} threads became {now}: {:?}", threads());
        assert_idle();
    });
}

// ---------- one message now and then ----------

const MS: Duration = Duration::from_millis(1);

/// How often the runtime's own threads, by their names, went to sleep so far: how often they were woken.
fn switches_of_the_runtime() -> u64 {
    let of_task = |path: std::path::PathBuf| -> Option<u64> {
        let status = fs::read_to_string(path.join("status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let ours = field("Name:")?.starts_with("smol");
        ours.then(|| field("voluntary_ctxt_switches:")?.parse().ok())?
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| of_task(task.ok()?.path())).sum()
}

/// A task on the workers that reads a socket byte by byte; `got` hears of each byte.
fn reader(got: &mpsc::Sender<Instant>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut ours, got) = (Async::new(ours).unwrap(), got.clone());
    spawn(async move {
        while ours.read_exact(&mut [0]).await.is_ok() {
            let _ = got.send(Instant::now());
        }
    })
    .detach();
    theirs
}

/// Sends one byte every 20 ms to the readers in turn, and says how many wake-ups of the runtime's threads
/// one byte costs, in the best of several rounds.
fn wake_ups_per_message(what: &str, sockets: &mut [UnixStream], got: &mpsc::Receiver<Instant>) {
    let mut send = |i: usize| {
        let count = sockets.len();
        sockets[i % count].write_all(b"x").unwrap();
        got.recv().unwrap();
        thread::sleep(20 * MS);
    };
    (0..10).for_each(&mut send);
    let rounds = (0..6).map(|_| {
        let before = switches_of_the_runtime();
        (0..30).for_each(&mut send);
        switches_of_the_runtime().saturating_sub(before) as f64 / 30.0
    });
    let best = rounds.fold(f64::INFINITY, f64::min);
    println!("{what}: {best:.2} wake-ups for each message");
    assert!(best < 2.0, "{what}: {best:.2} wake-ups for each message");
}

const WORKERS: [&[(&str, &str)]; 3] =
    [&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "4")]];

#[test]
fn a_message_now_and_then_wakes_one_thread() {
    fresh_processes(60, &WORKERS, || {
        let (sender, got) = mpsc::channel();
        wake_ups_per_message("one task", &mut [reader(&sender)], &got);
    });
}

#[test]
fn a_message_now_and_then_wakes_one_thread_while_a_timer_is_set() {
    fresh_processes(60, &WORKERS, || {
        let (sender, got) = mpsc::channel();
        let _far = spawn(sleep(HOUR));
        let _soon = spawn(sleep(30_000 * MS));
        wake_ups_per_message("beside timers", &mut [reader(&sender)], &got);
    });
}

#[test]
fn a_message_now_and_then_wakes_one_thread_whichever_task_it_is_for() {
    fresh_processes(60, &WORKERS, || {
        let (sender, got) = mpsc::channel();
        let mut sockets = [(); 2].map(|()| reader(&sender));
        wake_ups_per_message("two tasks", &mut sockets, &got);
        let mut sockets = [(); 50].map(|()| reader(&sender));
        wake_ups_per_message("fifty tasks", &mut sockets, &got);
    });
}

/// The task has a timer of its own for each message, as servers do that have time-outs.
#[test]
fn a_message_now_and_then_wakes_one_thread_when_each_has_a_time_out() {
    fresh_processes(60, &WORKERS, || {
        let (sender, got) = mpsc::channel();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut ours = Async::new(ours).unwrap();
        spawn(async move {
            while smol::timeout(HOUR, ours.read_exact(&mut [0])).await.is_ok() {
                let _ = sender.send(Instant::now());
            }
        })
        .detach();
        wake_ups_per_message("time-outs", &mut [theirs], &got);
    });
}

/// One tick of an interval is a message as well.
#[test]
fn a_tick_now_and_then_wakes_one_thread() {
    fresh_processes(60, &WORKERS, || {
        let ticks = Arc::new(AtomicUsize::new(0));
        // (The other end is not registered, or its news would wake somebody as well.)
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut ours = Async::new(ours).unwrap();
        let counted = ticks.clone();
        spawn(async move {
            loop {
                sleep(20 * MS).await;
                ours.write_all(b"x").await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
            }
        })
        .detach();
        eventually(|| ticks.load(Ordering::SeqCst) > 10);
        let rounds = (0..6).map(|_| {
            let (wakes, before) = (switches_of_the_runtime(), ticks.load(Ordering::SeqCst));
            thread::sleep(500 * MS);
            let wakes = switches_of_the_runtime().saturating_sub(wakes) as f64;
            wakes / (ticks.load(Ordering::SeqCst) - before).max(1) as f64
        });
        let best = rounds.fold(f64::INFINITY, f64::min);
        println!("an interval: {best:.2} wake-ups for each tick");
        assert!(best < 2.0, "{best:.2} wake-ups for each tick");
    });
}

/// Who is not called in case of need has to be called in need: the task that got the message blocks.
#[test]
fn a_message_after_which_its_task_blocks_does_not_hold_up_the_others() {
    fresh_processes(60, &WORKERS, || {
        let mut late = Vec::new();
        let (sender, got) = mpsc::channel();
        let mut other = reader(&sender);
        let (mut ours, mut theirs) = socket_pair();
        let (blocked, is_blocked) = mpsc::channel();
        // After some quiet messages, each one makes the task block.
        spawn(async move {
            for i in 0.. {
                ours.read_exact(&mut [0]).await.unwrap();
                blocked.send(()).unwrap();
                if i >= 10 {
                    thread::sleep(400 * MS);
                }
            }
        })
        .detach();
        for round in 0..16 {
            thread::sleep(20 * MS);
            let due = Instant::now() + 5 * MS;
            let timer = spawn(async move {
                Timer::at(due).await;
                due.elapsed()
            });
            block_on(theirs.write_all(b"x")).unwrap();
            is_blocked.recv().unwrap();
            let start = Instant::now();
            other.write_all(b"x").unwrap();
            let socket = got.recv().unwrap() - start;
            let start = Instant::now();
            let task = foreign_block_on(spawn(async move { start.elapsed() }));
            let timer = foreign_block_on(timer);
            println!("round {round}: socket {socket:?}, task {task:?}, timer {timer:?}");
            if round >= 10 {
                late.push(socket.max(task).max(timer));
                eventually(|| start.elapsed() > 420 * MS);
            }
        }
        // Half of the rounds at least: in the others, the machine may have been busy.
        late.sort();
        assert!(late[late.len() / 2] < 100 * MS, "the others wait for {late:?}");
    });
}
