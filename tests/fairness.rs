//! Nobody starves: not behind a task that blocks its thread, not behind one that is always ready.

mod common;

use common::{Flag, foreign_block_on, fresh_process, fresh_processes, sleep, socket_pair, within};
use smol::{
    Async, Executor, Timer, block_on, future, prelude::*, spawn, spawn_local, stream::StreamExt,
};
use std::{
    cell::Cell,
    future::{Future, pending},
    io::Write,
    iter,
    net::{TcpListener, TcpStream},
    rc::Rc,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// A bound against hangs: what is said to run at once must run before this is over.
const SOON: Duration = Duration::from_secs(5);

/// A socket that can be read for ever: a thread keeps it full until the socket is dropped.
fn endless_socket() -> Async<TcpStream> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut feeder = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = listener.accept().unwrap().0;
    thread::spawn(move || while feeder.write_all(&[1; 64 << 10]).is_ok() {});
    Async::new(socket).unwrap()
}

async fn yield_for_ever() {
    loop {
        future::yield_now().await;
    }
}

/// What is always ready: each of these never lets go of its thread by itself, but for a `yield_now` or the runtime's budget.
fn always_ready(kind: &str) -> Box<dyn Future<Output = ()> + Send + Unpin> {
    match kind {
        "yield" => Box::new(Box::pin(yield_for_ever())),
        "read" => Box::new(Box::pin(async {
            let mut socket = endless_socket();
            let mut buffer = [0; 16];
            while socket.read(&mut buffer).await.unwrap() > 0 {}
        })),
        "writable" => Box::new(Box::pin(async {
            let (socket, _peer) = socket_pair();
            loop {
                socket.writable().await.unwrap();
            }
        })),
        "interval" => Box::new(Box::pin(async {
            let mut interval = Timer::interval(Duration::ZERO);
            while interval.next().await.is_some() {}
        })),
        "timers" => Box::new(Box::pin(async {
            loop {
                Timer::after(Duration::ZERO).await;
            }
        })),
        _ => unreachable!(),
    }
}

const ALWAYS_READY: [&str; 5] = ["yield", "read", "writable", "interval", "timers"];

/// Waits once for a timer and once for a byte.
async fn a_timer_and_a_byte() {
    Timer::after(Duration::from_millis(5)).await;
    let (mut reader, mut writer) = socket_pair();
    let send = async {
        Timer::after(Duration::from_millis(5)).await;
        writer.write_all(b"x").await.unwrap();
    };
    let mut buffer = [0];
    let receive = async { reader.read_exact(&mut buffer).await.unwrap() };
    future::zip(send, receive).await;
}

// ---------- tasks that block their thread ----------

/// tokio #4730: the worker that came from the reactor blocks, and with it the reactor.
#[test]
fn a_task_that_blocks_right_after_its_event_does_not_stop_the_reactor() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for round in 0..30 {
            let ((mut a, mut to_a), (mut b, mut to_b)) = (socket_pair(), socket_pair());
            let (release, released) = mpsc::channel();
            let x = spawn(async move {
                if round % 2 == 0 {
                    a.read_exact(&mut [0]).await.unwrap();
                } else {
                    Timer::after(Duration::from_millis(1)).await;
                }
                to_b.write_all(b"b").await.unwrap();
                released.recv_timeout(SOON).expect("the others wait for a task that blocks");
            });
            let y = spawn(async move {
                b.read_exact(&mut [0]).await.unwrap();
                Timer::after(Duration::from_millis(1)).await;
                release.send(()).unwrap();
            });
            let main = async {
                to_a.write_all(b"a").await.unwrap();
                future::zip(x, y).await;
            };
            if round % 3 == 0 {
                foreign_block_on(main)
            } else {
                block_on(main)
            };
        }
    });
}

#[test]
fn as_many_blocked_tasks_as_workers_do_not_stop_tasks_timers_and_sockets() {
    let configurations: [&[(&str, &str)]; 3] =
        [&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "4")]];
    fresh_processes(30, &configurations, || {
        let workers: usize = std::env::var("SMOL_THREADS").unwrap().parse().unwrap();
        let (blocked, all_blocked) = mpsc::channel();
        let (releases, tasks): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (blocked, (release, released)) = (blocked.clone(), mpsc::channel::<()>());
                let task = spawn(async move {
                    blocked.send(()).unwrap();
                    released.recv_timeout(2 * SOON).expect("never released");
                });
                (release, task)
            })
            .unzip();
        (0..workers).for_each(|_| {
            all_blocked.recv_timeout(SOON).expect("the blocking tasks do not all run at once")
        });
        // Every worker is blocked now.
        let start = Instant::now();
        foreign_block_on(async {
            spawn(async {}).await;
            spawn(a_timer_and_a_byte()).await;
            a_timer_and_a_byte().await;
        });
        block_on(async {
            spawn(async {}).await;
            spawn(a_timer_and_a_byte()).await;
            a_timer_and_a_byte().await;
        });
        assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
        releases.into_iter().for_each(|release| release.send(()).unwrap());
        foreign_block_on(async {
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(block_on(spawn(async { 1 })), 1);
    });
}

#[test]
fn a_worker_that_computes_for_ever_does_not_stop_the_others() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        let stop = Flag::new();
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let stop = stop.clone();
                spawn(async move {
                    while !stop.is_set() {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        let start = Instant::now();
        foreign_block_on(spawn(a_timer_and_a_byte()));
        assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
        stop.set();
        foreign_block_on(async {
            for task in tasks {
                task.await;
            }
        });
    });
}

#[test]
fn tasks_queued_by_a_task_that_then_blocks_run_on_another_worker() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for _ in 0..20 {
            let (sender, receiver) = mpsc::channel();
            foreign_block_on(spawn(async move {
                let tasks: Vec<_> = (0..300)
                    .map(|i| {
                        let sender = sender.clone();
                        spawn(async move { sender.send(i).unwrap() })
                    })
                    .collect();
                let sum: u32 = (0..300)
                    .map(|_| receiver.recv_timeout(SOON).expect("tasks wait behind a blocked one"))
                    .sum();
                assert_eq!(sum, 299 * 300 / 2);
                drop(tasks);
            }));
        }
    });
}

/// The task woken last may sit in a place of its own; when its waker blocks, somebody must find it there.
#[test]
fn a_task_woken_by_one_that_then_blocks_runs_on_another_worker() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for _ in 0..20 {
            let (woken, (ran, has_run)) = (Flag::new(), mpsc::channel());
            let sleeper = spawn({
                let woken = woken.clone();
                async move {
                    woken.wait().await;
                    ran.send(()).unwrap();
                }
            });
            let blocker = spawn(async move {
                future::yield_now().await;
                woken.set();
                has_run
                    .recv_timeout(SOON)
                    .expect("the woken task waits behind the one that woke it");
            });
            foreign_block_on(future::zip(sleeper, blocker));
        }
    });
}

/// Tasks on their way from one queue to another must not be overlooked by a worker that goes to sleep.
#[test]
fn two_tasks_that_block_until_they_meet_do_meet_beside_a_busy_worker() {
    fresh_processes(60, &[&[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "3")]], || {
        let busy = spawn(yield_for_ever());
        for round in 0..200 {
            let meet = Arc::new(Barrier::new(2));
            let tasks = [(); 2].map(|()| {
                let meet = meet.clone();
                spawn(async move {
                    meet.wait();
                })
            });
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
            for _ in 0..round % 300 {
                std::hint::spin_loop();
            }
        }
        drop(busy);
    });
}

// ---------- tasks that are always ready ----------

/// tokio #5705: tasks from outside wait behind those of the worker.
#[test]
fn a_task_spawned_from_outside_runs_although_the_worker_is_never_out_of_work() {
    fresh_process(30, &[("SMOL_THREADS", "1")], || {
        // Two that wake each other, two that yield, all for ever.
        let ping_pong = |mine: Arc<AtomicUsize>, turn: usize| async move {
            loop {
                while mine.load(Ordering::Relaxed) % 2 != turn {
                    future::yield_now().await;
                }
                mine.fetch_add(1, Ordering::Relaxed);
            }
        };
        let turns = Arc::new(AtomicUsize::new(0));
        let _busy = [spawn(ping_pong(turns.clone(), 0)), spawn(ping_pong(turns.clone(), 1))];
        let _yields = [spawn(yield_for_ever()), spawn(yield_for_ever())];
        common::eventually(|| turns.load(Ordering::Relaxed) > 100);
        for _ in 0..100 {
            let start = Instant::now();
            foreign_block_on(spawn(async {}));
            assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
        }
    });
}

/// tokio #2349, #5686: two tasks that wake each other keep a LIFO slot to themselves.
#[test]
fn two_tasks_that_wake_each_other_for_ever_do_not_starve_a_third() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        // Each waits for a wake by the other one.
        async fn player(own: Arc<Turn>, other: Arc<Turn>) {
            loop {
                own.take().await;
                other.give();
            }
        }
        let [a, b] = [(); 2].map(|()| Arc::new(Turn::default()));
        let _players = [spawn(player(a.clone(), b.clone())), spawn(player(b, a.clone()))];
        a.give();
        // From outside, and from the inside of a player's worker.
        let start = Instant::now();
        foreign_block_on(spawn(async {}));
        foreign_block_on(spawn(async {
            for _ in 0..100 {
                spawn(async {}).await;
            }
        }));
        foreign_block_on(spawn(a_timer_and_a_byte()));
        assert!(start.elapsed() < 2 * SOON, "took {:?}", start.elapsed());
    });
}

/// A token that one task at a time can take.
#[derive(Default)]
struct Turn(std::sync::Mutex<(bool, Option<std::task::Waker>)>);

impl Turn {
    fn give(&self) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn take(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            if std::mem::take(&mut state.0) {
                return std::task::Poll::Ready(());
            }
            state.1 = Some(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await
    }
}

#[test]
fn what_is_always_ready_does_not_starve_others_on_a_worker() {
    fresh_process(60, &[("SMOL_THREADS", "1")], || {
        for kind in ALWAYS_READY {
            let busy = [spawn(always_ready(kind)), spawn(always_ready(kind))];
            let start = Instant::now();
            foreign_block_on(spawn(a_timer_and_a_byte()));
            assert!(start.elapsed() < SOON, "{kind}: took {:?}", start.elapsed());
            drop(busy);
        }
    });
}

#[test]
fn what_is_always_ready_does_not_starve_others_in_block_on() {
    within(60, || {
        for kind in ALWAYS_READY {
            let start = Instant::now();
            // As a local task against the main future, and as the main future against a local task.
            block_on(async {
                let _busy = spawn_local(always_ready(kind));
                a_timer_and_a_byte().await;
            });
            let task = spawn_local(a_timer_and_a_byte());
            block_on(future::or(always_ready(kind), task));
            // As one half of the main future.
            block_on(future::or(always_ready(kind), a_timer_and_a_byte()));
            assert!(start.elapsed() < 2 * SOON, "{kind}: took {:?}", start.elapsed());
        }
    });
}

#[test]
fn what_is_always_ready_does_not_starve_others_under_a_foreign_block_on() {
    within(60, || {
        for kind in ALWAYS_READY {
            let start = Instant::now();
            foreign_block_on(future::or(always_ready(kind), a_timer_and_a_byte()));
            let ex = Executor::new();
            ex.spawn(always_ready(kind)).detach();
            foreign_block_on(ex.run(a_timer_and_a_byte()));
            assert!(start.elapsed() < 2 * SOON, "{kind}: took {:?}", start.elapsed());
        }
    });
}

#[test]
fn a_timeout_ends_what_is_always_ready() {
    within(60, || {
        for kind in ALWAYS_READY {
            let short = Duration::from_millis(20);
            block_on(smol::timeout(short, always_ready(kind))).unwrap_err();
            foreign_block_on(smol::timeout(short, always_ready(kind))).unwrap_err();
            block_on(spawn(smol::timeout(short, always_ready(kind)))).unwrap_err();
            block_on(spawn_local(smol::timeout(short, always_ready(kind)))).unwrap_err();
        }
    });
}

#[test]
fn calls_of_block_on_that_are_short_and_never_wait_do_not_starve_timers_of_other_tasks() {
    fresh_process(30, &[], || {
        // The only thread that polls: it is never idle, its calls end at once.
        let fired = Rc::new(Cell::new(false));
        spawn_local({
            let fired = fired.clone();
            async move {
                a_timer_and_a_byte().await;
                fired.set(true);
            }
        })
        .detach();
        let start = Instant::now();
        while !fired.get() {
            block_on(future::yield_now());
            assert!(start.elapsed() < SOON, "the timer of a local task starves");
        }
    });
}

/// smol #159: the second of two local tasks gets nothing until the first is done.
#[test]
fn two_local_tasks_with_sockets_that_are_always_ready_progress_alike() {
    within(30, || {
        let progress = Rc::new([const { Cell::new(0u64) }; 2]);
        block_on(async {
            let _tasks = [0, 1].map(|i| {
                let progress = progress.clone();
                spawn_local(async move {
                    let mut socket = endless_socket();
                    while socket.read(&mut [0; 16]).await.unwrap() > 0 {
                        progress[i].set(progress[i].get() + 1);
                    }
                })
            });
            while progress[0].get() + progress[1].get() < 100_000 {
                future::yield_now().await;
            }
        });
        let [one, two] = [progress[0].get(), progress[1].get()];
        assert!(one < 4 * two && two < 4 * one, "{one} : {two}");
    });
}

/// Also if they are more than a worker's own queue can hold. A round in which the system keeps a worker waiting, so
/// that a spare one takes over its tasks, says nothing; but most rounds are as they should be.
#[test]
fn tasks_that_yield_progress_alike() {
    // Five million polls: under a sanitizer, or qemu, these take their time.
    fresh_process(240, &[("SMOL_THREADS", "1")], || {
        for (tasks, goal) in [(8, 100_000), (256, 4_000), (300, 4_000), (2_000, 1_000)] {
            while !a_round_of_yields_is_alike(tasks, goal) {}
        }
    });
}

fn a_round_of_yields_is_alike(tasks: usize, goal: usize) -> bool {
    let progress: Arc<Vec<AtomicUsize>> =
        Arc::new((0..tasks).map(|_| AtomicUsize::new(0)).collect());
    let (go, done) = (Flag::new(), Flag::new());
    let _tasks: Vec<_> = (0..tasks)
        .map(|i| {
            let (progress, go, done) = (progress.clone(), go.clone(), done.clone());
            spawn(async move {
                go.wait().await;
                while progress[i].fetch_add(1, Ordering::Relaxed) < goal {
                    future::yield_now().await;
                }
                done.set();
            })
        })
        .collect();
    // From the worker itself, so that all start at once.
    foreign_block_on(spawn(async move { go.set() }));
    foreign_block_on(done.wait());
    let counts = progress.iter().map(|count| count.load(Ordering::Relaxed));
    counts.min().unwrap() > goal / 4
}

/// Neither of two workers is ever idle, and neither would steal.
#[test]
fn a_task_that_has_a_worker_for_itself_gives_others_room_there() {
    fresh_process(120, &[("SMOL_THREADS", "2")], || {
        let counts: Arc<[AtomicUsize; 64]> = Arc::new([const { AtomicUsize::new(0) }; 64]);
        let (counted, windows) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel();
        // It blocks its worker until the other one has the rest.
        let favoured = spawn({
            let counts = counts.clone();
            async move {
                wait.recv().unwrap();
                let look = || counts.each_ref().map(|n| n.load(Ordering::Relaxed));
                while counted.send(look()).is_ok() {
                    for _ in 0..10_000 {
                        counts[0].fetch_add(1, Ordering::Relaxed);
                        future::yield_now().await;
                    }
                }
            }
        });
        let _others: Vec<_> = (1..counts.len())
            .map(|i| {
                let counts = counts.clone();
                spawn(async move {
                    loop {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                        future::yield_now().await;
                    }
                })
            })
            .collect();
        while counts[1..].iter().any(|n| n.load(Ordering::Relaxed) < 1_000) {
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        // While the favoured task runs 10,000 times.
        loop {
            let (before, after) = (windows.recv().unwrap(), windows.recv().unwrap());
            let runs: Vec<_> =
                iter::zip(after, before).map(|(after, before)| after - before).collect();
            if runs.iter().min().unwrap() * 8 > *runs.iter().max().unwrap() {
                break;
            }
        }
        drop(windows);
        foreign_block_on(favoured);
    });
}

/// async-io 0.2.4: "Prevent threads in block_on from hogging the reactor forever".
#[test]
fn a_thread_that_waits_long_does_not_keep_the_events_of_others() {
    fresh_process(30, &[], || {
        let done = Flag::new();
        thread::scope(|scope| {
            scope.spawn(|| block_on(future::or(done.wait(), sleep(Duration::from_secs(3600)))));
            let ((mut one, mut two), start) = (socket_pair(), Instant::now());
            for _ in 0..500 {
                block_on(future::zip(async { one.write_all(b"x").await.unwrap() }, async {
                    two.read_exact(&mut [0]).await.unwrap()
                }));
            }
            assert!(start.elapsed() < 2 * SOON, "500 bytes took {:?}", start.elapsed());
            done.set();
        });
    });
}

#[test]
fn a_future_that_depletes_its_budget_in_a_foreign_executor_is_polled_again() {
    within(30, || {
        // More operations that are ready than any budget allows, in one poll, where nobody else would wake the task.
        let operations = async {
            let mut socket = endless_socket();
            for _ in 0..20_000 {
                assert_eq!(socket.read(&mut [0]).await.unwrap(), 1);
            }
        };
        foreign_block_on(future::or(operations, pending()));
    });
}

/// Such a loop never lets its thread ask the kernel, and a program like this has no other thread that could.
#[test]
fn a_future_that_polls_in_a_circle_without_yielding_gets_its_timer_and_its_bytes() {
    fresh_process(20, &[], || {
        block_on(async {
            let mut timer = Timer::after(Duration::from_millis(5));
            while future::poll_once(&mut timer).await.is_none() {}

            let (mut ours, theirs) = socket_pair();
            let mut theirs = theirs.into_inner().unwrap();
            let mut buffer = [0; 8];
            assert!(future::poll_once(ours.read(&mut buffer)).await.is_none());
            theirs.write_all(b"at last").unwrap();
            loop {
                if let Some(read) = future::poll_once(ours.read(&mut buffer)).await {
                    break assert_eq!(&buffer[..read.unwrap()], b"at last");
                }
            }
        });
    });
}

/// Tasks that are woken together are run by one worker if such tasks were cheap; not if one of them then blocks.
#[test]
fn cheap_tasks_that_wait_for_each_other_for_once_run_on_several_workers() {
    within(30, || {
        block_on(async {
            for tasks in 2..=8 {
                // The deadlines are the same, so that one look at the clock wakes all.
                for _ in 0..10 {
                    let at = Instant::now() + Duration::from_millis(1);
                    let all: Vec<_> = (0..tasks).map(|_| spawn(Timer::at(at))).collect();
                    for task in all {
                        task.await;
                    }
                }
                let at = Instant::now() + Duration::from_millis(1);
                let barrier = Arc::new(Barrier::new(2));
                let all: Vec<_> = (0..tasks / 2 * 2)
                    .map(|_| {
                        let barrier = barrier.clone();
                        spawn(async move {
                            Timer::at(at).await;
                            barrier.wait();
                        })
                    })
                    .collect();
                for task in all {
                    task.await;
                }
            }
        });
    });
}

// ---------- fairness is timed, not counted ----------

const MS: Duration = Duration::from_millis(1);

/// Microseconds of work that all tasks of this process have asked for so far.
static WORKED: AtomicU64 = AtomicU64::new(0);

/// Uses its thread for `duration`, as a task does that has something to compute.
fn work(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
    WORKED.fetch_add(duration.as_micros() as u64, Ordering::SeqCst);
}

/// A moment from which somebody waits.
#[derive(Clone, Copy)]
struct Since(Instant, u64);

impl Since {
    fn now() -> Since {
        Since(Instant::now(), WORKED.load(Ordering::SeqCst))
    }

    /// How long one has waited for the others' work, which is what a runtime can do something about:
    /// on a machine with more to do than this, the wait itself is longer.
    fn waited(self) -> Duration {
        let worked = WORKED.load(Ordering::SeqCst) - self.1;
        if WORKED.load(Ordering::SeqCst) == 0 {
            return self.0.elapsed(); // nobody works here, they only block
        }
        self.0.elapsed().min(Duration::from_micros(worked) + 20 * MS)
    }
}

async fn work_and_yield(piece: Duration) {
    loop {
        work(piece);
        future::yield_now().await;
    }
}

/// What a program wants from a runtime that is busy, and how long it had to wait for it at worst.
#[derive(Debug, Default)]
struct Waits {
    spawn: Duration,
    timer: Duration,
    socket: Duration,
    wake: Duration,
}

impl Waits {
    fn worst(&self) -> Duration {
        self.spawn.max(self.timer).max(self.socket).max(self.wake)
    }

    /// From a thread that is not the runtime's: a new task, its timer, a byte, a wake, `times` times.
    fn measure(times: u32) -> Waits {
        let mut waits = Waits::default();
        let (heard, hear) = mpsc::channel::<()>();
        let (mut ours, theirs) = socket_pair();
        let reading = spawn({
            let heard = heard.clone();
            async move {
                while ours.read_exact(&mut [0]).await.is_ok() {
                    heard.send(()).unwrap();
                }
            }
        });
        // A channel of one's own: the task waits for it, and this thread fills it.
        let turn = Arc::new(Turn::default());
        let woken = spawn({
            let (heard, turn) = (heard.clone(), turn.clone());
            async move {
                loop {
                    turn.take().await;
                    heard.send(()).unwrap();
                }
            }
        });
        for i in 0..times {
            if waits.worst() > 1_000 * MS {
                break; // bad enough
            }
            // At all kinds of moments, seen from the tasks that are busy.
            thread::sleep(Duration::from_millis(u64::from(7 * i % 23)));
            let since = Since::now();
            let started = heard.clone();
            let task = spawn(async move {
                started.send(()).unwrap();
                let (start, since) = (Instant::now(), Since::now());
                Timer::after(15 * MS).await;
                since.waited().min(start.elapsed() - 15 * MS)
            });
            hear.recv().unwrap();
            waits.spawn = waits.spawn.max(since.waited());
            waits.timer = waits.timer.max(foreign_block_on(task));
            let since = Since::now();
            (&mut theirs.get_ref()).write_all(b"x").unwrap();
            hear.recv().unwrap();
            waits.socket = waits.socket.max(since.waited());
            let since = Since::now();
            turn.give();
            hear.recv().unwrap();
            waits.wake = waits.wake.max(since.waited());
        }
        drop((reading, woken));
        waits
    }
}

/// Fails if the worst of ten is over `bound` three times in a row: once or twice, it may be the machine.
fn all_wait_less_than(bound: Duration, what: &str) {
    let tries: Vec<Waits> = std::iter::repeat_with(|| {
        let waits = Waits::measure(10);
        println!("{what}, the worst of ten: {waits:?}");
        waits
    })
    .take(3)
    .scan(false, |good, waits| {
        let go_on = !*good;
        *good = waits.worst() < bound;
        go_on.then_some(waits)
    })
    .collect();
    assert!(tries.last().unwrap().worst() < bound, "{what}: {tries:?}");
    // But no machine makes anybody wait for so long.
    assert!(tries.iter().all(|waits| waits.worst() < 5_000 * MS), "{what}: {tries:?}");
}

/// The goal is 50 ms; sixty-one tasks of 10 ms are more than half a second.
#[test]
fn beside_tasks_of_ten_milliseconds_nothing_waits_for_a_round_of_them() {
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        // One worker is blocked, or the only one is busy.
        let blocked = std::env::var("SMOL_THREADS").as_deref() == Ok("2");
        let release = Flag::new();
        let blocker = blocked.then(|| {
            let (release, is_blocked) = (release.clone(), Flag::new());
            let blocker = spawn({
                let is_blocked = is_blocked.clone();
                async move {
                    is_blocked.set();
                    release.wait_blocking()
                }
            });
            is_blocked.wait_blocking();
            blocker
        });
        let busy: Vec<_> = (0..8).map(|_| spawn(work_and_yield(10 * MS))).collect();
        all_wait_less_than(250 * MS, "eight tasks of 10 ms");
        drop(busy);
        release.set();
        blocker.map(foreign_block_on);
    });
}

/// As many as a worker's own queue holds with ease: a round of them takes a second.
#[test]
fn beside_a_hundred_tasks_of_ten_milliseconds_nothing_waits_for_a_round_of_them() {
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        let busy: Vec<_> = (0..100).map(|_| spawn(work_and_yield(10 * MS))).collect();
        all_wait_less_than(250 * MS, "a hundred tasks of 10 ms");
        drop(busy);
    });
}

/// Each of them begins a new one, so that none is ever woken or yields.
#[test]
fn beside_tasks_that_spawn_their_successors_nothing_waits_long() {
    fn successor(piece: Duration, until: Arc<Flag>) {
        spawn(async move {
            work(piece);
            if !until.is_set() {
                successor(piece, until.clone());
            }
        })
        .detach();
    }
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for piece in [MS / 100, 10 * MS] {
            let until = Flag::new();
            (0..8).for_each(|_| successor(piece, until.clone()));
            all_wait_less_than(250 * MS, "eight that spawn their successors");
            until.set();
        }
    });
}

/// Two that wake each other have a place of their own on their worker.
#[test]
fn beside_two_long_tasks_that_wake_each_other_nothing_waits_long() {
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        async fn player(own: Arc<Turn>, other: Arc<Turn>) {
            loop {
                own.take().await;
                work(10 * MS);
                other.give();
            }
        }
        let mut players = Vec::new();
        for _ in 0..3 {
            let [a, b] = [(); 2].map(|()| Arc::new(Turn::default()));
            players.push(spawn(player(a.clone(), b.clone())));
            players.push(spawn(player(b, a.clone())));
            a.give();
        }
        all_wait_less_than(250 * MS, "pairs that wake each other");
        drop(players);
    });
}

#[test]
fn beside_workers_that_are_all_blocked_nothing_waits_long() {
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        let workers: usize = std::env::var("SMOL_THREADS").unwrap().parse().unwrap();
        for spins in [false, true] {
            let (release, running) = (Flag::new(), Arc::new(AtomicUsize::new(0)));
            let tasks: Vec<_> = (0..workers)
                .map(|_| {
                    let (release, running) = (release.clone(), running.clone());
                    spawn(async move {
                        running.fetch_add(1, Ordering::SeqCst);
                        if spins {
                            while !release.is_set() {
                                work(MS);
                            }
                        } else {
                            release.wait_blocking();
                        }
                    })
                })
                .collect();
            common::eventually(|| running.load(Ordering::SeqCst) == workers);
            let what = if spins { "all workers compute" } else { "all workers are blocked" };
            all_wait_less_than(250 * MS, what);
            release.set();
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
    });
}

/// Blocks for long now and then, as a handler does that calls what it should not.
#[test]
fn beside_tasks_that_now_and_then_block_nothing_waits_long() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let busy: Vec<_> = (0..6)
            .map(|i| {
                spawn(async move {
                    loop {
                        thread::sleep((20 + 10 * i) * MS);
                        future::yield_now().await;
                    }
                })
            })
            .collect();
        all_wait_less_than(250 * MS, "six that block for 20 to 70 ms");
        drop(busy);
    });
}

/// How long a main future that always wants to go on has to wait for its next turn, at worst.
async fn longest_pause(duration: Duration) -> Duration {
    let (start, mut last, mut longest) = (Instant::now(), Since::now(), Duration::ZERO);
    while start.elapsed() < duration {
        future::yield_now().await;
        longest = longest.max(last.waited());
        last = Since::now();
    }
    longest
}

/// The same with a timer, which has to be seen before it can be told.
async fn latest_timer(duration: Duration) -> Duration {
    let (start, mut latest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < duration {
        let (begin, since) = (Instant::now(), Since::now());
        Timer::after(5 * MS).await;
        latest = latest.max(since.waited().min(begin.elapsed() - 5 * MS));
    }
    latest
}

type Watch = fn(Duration) -> std::pin::Pin<Box<dyn Future<Output = Duration>>>;

fn a_main_future_is_polled_in_time(name: &str, run: impl Fn(Watch) -> Duration) {
    let watches: [(&str, Watch); 2] = [
        ("polls", |duration| Box::pin(longest_pause(duration))),
        ("timers", |duration| Box::pin(latest_timer(duration))),
    ];
    for (what, watch) in watches {
        let late: Vec<_> = (0..3)
            .map(|_| run(watch))
            .inspect(|worst| println!("{name}, {what}: {worst:?}"))
            .take_while(|worst| *worst >= 250 * MS)
            .collect();
        assert!(late.len() < 3, "{name}: {what} of the main future wait for {late:?}");
    }
}

#[test]
fn run_polls_its_main_future_in_time_beside_hundreds_of_long_tasks() {
    fresh_process(60, &[], || {
        for (tasks, piece) in [(300, 4 * MS), (20, 20 * MS)] {
            a_main_future_is_polled_in_time(&format!("run, {tasks} of {piece:?}"), |watch| {
                let ex = Executor::new();
                (0..tasks).for_each(|_| ex.spawn(work_and_yield(piece)).detach());
                block_on(ex.run(watch(1000 * MS)))
            });
            a_main_future_is_polled_in_time(&format!("a foreign run, {tasks}"), |watch| {
                let ex = Executor::new();
                (0..tasks).for_each(|_| ex.spawn(work_and_yield(piece)).detach());
                foreign_block_on(ex.run(watch(1000 * MS)))
            });
        }
    });
}

#[test]
fn local_tasks_that_take_long_let_the_main_future_go_on_in_time() {
    fresh_process(60, &[], || {
        for (tasks, piece) in [(300, 4 * MS), (20, 20 * MS)] {
            a_main_future_is_polled_in_time(&format!("local run, {tasks} of {piece:?}"), |watch| {
                let ex = smol::LocalExecutor::new();
                (0..tasks).for_each(|_| ex.spawn(work_and_yield(piece)).detach());
                block_on(ex.run(watch(1000 * MS)))
            });
            a_main_future_is_polled_in_time(&format!("block_on, {tasks} of {piece:?}"), |watch| {
                let _tasks: Vec<_> =
                    (0..tasks).map(|_| spawn_local(work_and_yield(piece))).collect();
                block_on(watch(1000 * MS))
            });
        }
    });
}

/// Its queue is not the global one, its driver no worker.
#[test]
fn a_task_that_an_executor_is_given_from_outside_runs_in_time_beside_long_tasks() {
    fresh_process(60, &[], || {
        let mut late = Vec::new();
        for _ in 0..3 {
            let ex = Arc::new(Executor::new());
            (0..100).for_each(|_| ex.spawn(work_and_yield(10 * MS)).detach());
            let done = Flag::new();
            let driver = thread::spawn({
                let (ex, done) = (ex.clone(), done.clone());
                move || block_on(ex.run(done.wait()))
            });
            // Once behind all the others, as is right: none of them has run yet.
            foreign_block_on(ex.spawn(async {}));
            let mut worst = Duration::ZERO;
            for _ in 0..5 {
                let since = Since::now();
                worst = worst.max(foreign_block_on(ex.spawn(async move { since.waited() })));
            }
            done.set();
            driver.join().unwrap();
            println!("the worst of five spawns: {worst:?}");
            if worst < 250 * MS {
                return;
            }
            late.push(worst);
        }
        panic!("spawned from outside, a task waits for {late:?}");
    });
}

/// tokio's benchmark of the same name: twice as many tasks as workers stall and then spawn their
/// successors; another thread spawns a thousand. The figures are printed; a second would be a hang.
#[test]
fn a_thousand_tasks_spawned_into_a_busy_runtime_come_to_their_end() {
    fn stall(until: Arc<Flag>) {
        spawn(async move {
            work(MS / 100);
            if !until.is_set() {
                stall(until);
            }
        })
        .detach();
    }
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let until = Flag::new();
        (0..4).for_each(|_| stall(until.clone()));
        let best = (0..5)
            .map(|_| {
                let start = Instant::now();
                let tasks: Vec<_> = (0..1_000).map(|_| spawn(async {})).collect();
                let spawned = start.elapsed();
                foreign_block_on(async {
                    for task in tasks {
                        task.await;
                    }
                });
                println!("1,000 tasks: spawned in {spawned:?}, done after {:?}", start.elapsed());
                start.elapsed()
            })
            .min();
        until.set();
        assert!(best.unwrap() < Duration::from_secs(1), "{best:?}");
    });
}

/// Tasks that are woken together are run by one worker, if such tasks were cheap; one that is not
/// lets its mates go elsewhere.
#[test]
fn cheap_tasks_of_which_one_takes_long_for_once_do_not_wait_for_it() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let batch = |long: bool| {
            foreign_block_on(async {
                let at = Instant::now() + 2 * MS;
                let tasks: Vec<_> = (0..6)
                    .map(|i| {
                        spawn(async move {
                            Timer::at(at).await;
                            let late = at.elapsed();
                            if long && i < 1 {
                                work(300 * MS);
                            }
                            late
                        })
                    })
                    .collect();
                let mut worst = Duration::ZERO;
                for task in tasks {
                    worst = worst.max(task.await);
                }
                worst
            })
        };
        let mut late = Vec::new();
        while late.len() < 3 {
            (0..20).for_each(|_| _ = batch(false));
            let worst = batch(true);
            println!("the last of a batch with a task of 300 ms: {worst:?}");
            if worst < 100 * MS {
                return;
            }
            late.push(worst);
        }
        panic!("the mates of a task of 300 ms wait for {late:?}");
    });
}
