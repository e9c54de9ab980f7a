//! `block_on` polls its own future and its thread's local tasks, nothing else; it nests; and timers, sockets and the pool work under
//! anybody's `block_on`.

mod common;

use common::{Flag, foreign_block_on, fresh_process, fresh_processes, sleep, socket_pair, within};
use smol::{
    Async, Timer, block_on, future,
    io::{AsyncReadExt, AsyncWriteExt},
    spawn, spawn_local, unblock,
};
use std::{
    cell::Cell,
    future::{Future, pending, poll_fn},
    io::Write,
    net::{TcpListener, TcpStream},
    panic::catch_unwind,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

/// A bound against hangs.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn block_on_gives_the_result_and_lets_the_future_borrow() {
    within(10, || {
        let text = String::from("borrowed");
        let not_send = Rc::new(1);
        assert_eq!(block_on(async { text.len() + *not_send }), 9);
        block_on(async { future::yield_now().await });
        assert!(catch_unwind(|| block_on(async { panic!("main") })).is_err());
        assert_eq!(block_on(async { 2 }), 2, "block_on does not work after a panic");
    });
}

#[test]
fn block_on_does_not_poll_without_a_wake() {
    within(10, || {
        let polls = Cell::new(0);
        let (waker_to, waker) = mpsc::channel::<Waker>();
        let waking = thread::spawn(move || {
            for waker in waker {
                thread::sleep(Duration::from_millis(5)); // time to poll once too often
                waker.wake();
            }
        });
        block_on(async move {
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                waker_to.send(cx.waker().clone()).unwrap();
                if polls.get() == 4 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert_eq!(polls.get(), 4);
            // A timer that is not due is no reason either.
            let timer_polls = Cell::new(0);
            let mut timer = Timer::after(Duration::from_millis(20));
            poll_fn(|cx| {
                timer_polls.set(timer_polls.get() + 1);
                Pin::new(&mut timer).poll(cx)
            })
            .await;
            assert!(timer_polls.get() <= 3, "{} polls for one timer", timer_polls.get());
        });
        waking.join().unwrap();
    });
}

#[test]
fn calls_nest_five_deep_through_tasks_that_block_their_worker() {
    fn nest(depth: u32) -> Pin<Box<dyn Future<Output = u32> + Send>> {
        Box::pin(async move {
            Timer::after(Duration::from_millis(1)).await;
            match depth {
                0 => 0,
                _ => block_on(spawn(nest(depth - 1))) + 1,
            }
        })
    }
    fresh_processes(
        30,
        &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "8")]],
        || {
            assert_eq!(block_on(async { spawn(async { block_on(spawn(async { 1 })) }).await }), 1);
            assert_eq!(block_on(nest(5)), 5);
            assert_eq!(foreign_block_on(spawn(nest(5))), 5);
            // Several such towers at once.
            let towers: Vec<_> = (0..4).map(|_| spawn(nest(5))).collect();
            for tower in towers {
                assert_eq!(block_on(tower), 5);
            }
        },
    );
}

#[test]
fn calls_nest_on_one_thread_with_timers_sockets_and_local_tasks() {
    fn nest(depth: u32) -> Pin<Box<dyn Future<Output = u32>>> {
        Box::pin(async move {
            Timer::after(Duration::from_millis(1)).await;
            let (mut one, mut two) = socket_pair();
            one.write_all(b"x").await.unwrap();
            two.read_exact(&mut [0]).await.unwrap();
            if depth == 0 { 0 } else { block_on(async { spawn_local(nest(depth - 1)).await }) + 1 }
        })
    }
    fresh_process(30, &[], || assert_eq!(block_on(nest(5)), 5));
}

/// async-std #644 and others: `block_on` takes a task that waits for the main future.
#[test]
fn a_task_that_blocks_until_the_main_future_goes_on_does_not_hold_it_up() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for _ in 0..50 {
            block_on(async {
                let (sender, receiver) = mpsc::channel();
                let task = spawn(async move {
                    receiver.recv_timeout(SOON).expect("the main future is held up")
                });
                for _ in 0..3 {
                    future::yield_now().await;
                }
                Timer::after(Duration::from_millis(1)).await;
                sender.send(7).unwrap();
                assert_eq!(task.await, 7);
            });
        }
    });
}

#[test]
fn block_on_runs_no_global_task_on_its_thread() {
    within(20, || {
        let home = thread::current().id();
        block_on(async {
            for _ in 0..500 {
                assert_ne!(spawn(async { thread::current().id() }).await, home);
            }
        });
    });
}

#[test]
fn a_wake_of_the_outer_future_during_an_inner_block_on_is_not_lost() {
    within(30, || {
        for _ in 0..200 {
            let mut polls = 0;
            block_on(poll_fn(|cx| {
                polls += 1;
                if polls == 2 {
                    return Poll::Ready(());
                }
                let (waker, woken) = (cx.waker().clone(), Flag::new());
                let waking = thread::spawn({
                    let woken = woken.clone();
                    move || {
                        waker.wake(); // the outer one, while the inner one sleeps or not
                        woken.set();
                    }
                });
                block_on(async {
                    woken.wait().await;
                    Timer::after(Duration::from_micros(100)).await;
                });
                waking.join().unwrap();
                Poll::Pending
            }));
        }
    });
}

#[test]
fn an_inner_wake_does_not_poll_the_outer_future() {
    within(10, || {
        let outer_polls = Cell::new(0);
        let (waker_to, outer_waker) = mpsc::channel::<Waker>();
        block_on(poll_fn(|cx| {
            outer_polls.set(outer_polls.get() + 1);
            if outer_polls.get() == 2 {
                return Poll::Ready(());
            }
            block_on(async {
                for _ in 0..10 {
                    future::yield_now().await;
                    Timer::after(Duration::from_millis(1)).await;
                }
            });
            waker_to.send(cx.waker().clone()).unwrap();
            let late = outer_waker.recv().unwrap();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(30)); // time to poll once too often
                late.wake();
            });
            Poll::Pending
        }));
        assert_eq!(outer_polls.get(), 2);
    });
}

#[test]
fn a_waker_that_outlives_its_block_on_wakes_nobody() {
    within(10, || {
        let waker = block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
        waker.wake_by_ref();
        let polls = Cell::new(0);
        block_on(async {
            let mut timer = Timer::after(Duration::from_millis(10));
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                Pin::new(&mut timer).poll(cx)
            })
            .await
        });
        waker.wake();
        assert!(polls.get() <= 3);
    });
}

/// smol 6dd21b8, tokio #525: the wake between "not woken" and "asleep".
#[test]
fn wakes_at_any_moment_reach_a_block_on_that_goes_to_sleep() {
    /// Wakes after a varying time; says when it is done with a round.
    fn in_lockstep(rounds: u32, with_timer: bool) {
        let ((waker_to, wakers), turn) = (mpsc::channel::<Waker>(), Arc::new(AtomicUsize::new(0)));
        let waking = thread::spawn({
            let turn = turn.clone();
            move || {
                for (round, waker) in wakers.into_iter().enumerate() {
                    for _ in 0..round % 97 {
                        std::hint::spin_loop();
                    }
                    turn.store(round + 1, Ordering::Relaxed); // the wake has to publish it
                    waker.wake();
                }
            }
        });
        let main = async {
            for round in 0..rounds as usize {
                let mut sent = false;
                poll_fn(|cx| {
                    if !sent {
                        sent = true;
                        waker_to.send(cx.waker().clone()).unwrap();
                    }
                    if turn.load(Ordering::Relaxed) > round {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
            }
        };
        if with_timer {
            // The thread sleeps in the poller then.
            block_on(future::or(main, sleep(Duration::from_secs(3600))));
        } else {
            block_on(main);
        }
        drop(waker_to);
        waking.join().unwrap();
    }
    within(60, || {
        in_lockstep(20_000, false);
        in_lockstep(20_000, true);
    });
}

// ---------- under anybody's block_on ----------

/// smol #153, async-std #811.
#[test]
fn timers_sockets_and_the_pool_work_under_a_foreign_block_on_alone() {
    fresh_process(20, &[], || {
        foreign_block_on(async {
            Timer::after(Duration::from_millis(5)).await;
            assert_eq!(unblock(|| 3).await, 3);
            let (mut one, mut two) = socket_pair();
            one.write_all(b"a").await.unwrap();
            two.readable().await.unwrap();
            two.read_exact(&mut [0]).await.unwrap();
            // One that has to wait.
            let late = async {
                Timer::after(Duration::from_millis(5)).await;
                one.write_all(b"b").await.unwrap();
            };
            future::zip(late, async { two.read_exact(&mut [0]).await.unwrap() }).await;
        });
    });
}

#[test]
fn a_timer_without_any_socket_works_under_a_foreign_block_on() {
    fresh_process(20, &[], || {
        for _ in 0..3 {
            foreign_block_on(Timer::after(Duration::from_millis(5)));
        }
    });
}

#[test]
fn a_socket_without_any_timer_works_under_a_foreign_block_on() {
    fresh_process(20, &[], || {
        let (mut reader, writer) = socket_pair();
        let asleep = Flag::new();
        let writing = thread::spawn({
            let asleep = asleep.clone();
            move || {
                asleep.wait_blocking();
                thread::sleep(Duration::from_millis(50)); // nothing tells when the other one sleeps
                Write::write_all(&mut writer.get_ref(), b"x").unwrap();
            }
        });
        asleep.set();
        foreign_block_on(async { reader.read_exact(&mut [0]).await.unwrap() });
        writing.join().unwrap();
    });
}

/// async-io PR 59: "ran for hours, then hangs".
#[test]
fn the_thread_that_polls_the_reactor_leaves_and_the_others_go_on() {
    fresh_process(30, &[], || {
        for round in 0..40 {
            // The first one in the poller leaves first; the others, of either kind, still wait for a timer or a byte.
            let (inside, (mut reader, writer)) = (Flag::new(), socket_pair());
            thread::scope(|scope| {
                scope.spawn(|| {
                    block_on(async {
                        inside.set();
                        Timer::after(Duration::from_millis(3)).await;
                    })
                });
                inside.wait_blocking();
                scope.spawn(|| {
                    let wait = sleep(Duration::from_millis(6));
                    if round % 2 == 0 { block_on(wait) } else { foreign_block_on(wait) }
                });
                scope.spawn(|| {
                    let wait = async { reader.read_exact(&mut [0]).await.unwrap() };
                    if round % 4 < 2 { foreign_block_on(wait) } else { block_on(wait) }
                });
                thread::sleep(Duration::from_millis(5 + round % 5));
                Write::write_all(&mut writer.get_ref(), b"x").unwrap();
            });
        }
    });
}

#[test]
fn a_thread_that_leaves_the_reactor_and_then_blocks_does_not_take_it_along() {
    fresh_process(30, &[], || {
        for round in 0..20 {
            let ((release, released), inside) = (mpsc::channel(), Flag::new());
            thread::scope(|scope| {
                let inside = &inside;
                scope.spawn(move || {
                    block_on(async {
                        inside.set();
                        Timer::after(Duration::from_millis(2)).await;
                        released
                            .recv_timeout(SOON)
                            .expect("the other timer waits for a thread that blocks");
                    })
                });
                inside.wait_blocking();
                let wait = sleep(Duration::from_millis(4));
                if round % 2 == 0 {
                    block_on(wait)
                } else {
                    foreign_block_on(wait)
                };
                release.send(()).unwrap();
            });
        }
    });
}

/// The reactor's driver leaves at random.
#[test]
fn many_threads_that_come_and_go_all_get_their_timers_and_bytes() {
    fresh_process(60, &[], || {
        let worst = AtomicUsize::new(0);
        thread::scope(|scope| {
            for thread in 0..8 {
                let worst = &worst;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(thread);
                    let (mut one, mut two) = socket_pair();
                    for _ in 0..250 {
                        let start = Instant::now();
                        let micros = random.u64(..3000);
                        let echo = random.bool();
                        let wait = async {
                            if echo {
                                let byte = async { two.read_exact(&mut [0]).await.unwrap() };
                                let late = async {
                                    Timer::after(Duration::from_micros(micros)).await;
                                    one.write_all(b"x").await.unwrap();
                                };
                                future::zip(late, byte).await;
                            } else {
                                Timer::after(Duration::from_micros(micros)).await;
                            }
                        };
                        if random.u8(..4) == 0 {
                            foreign_block_on(wait)
                        } else {
                            block_on(wait)
                        };
                        let late = start.elapsed().saturating_sub(Duration::from_micros(micros));
                        worst.fetch_max(late.as_millis() as usize, Ordering::Relaxed);
                    }
                });
            }
        });
        let worst = worst.into_inner();
        assert!(worst < 2000, "some timer or byte was {worst} ms late");
    });
}

#[test]
fn a_program_that_only_calls_block_on_has_no_helper_thread() {
    fresh_process(20, &[], || {
        #[cfg(target_os = "linux")]
        let before = common::threads().len();
        block_on(async {
            Timer::after(Duration::from_millis(5)).await;
            let (mut one, mut two) = socket_pair();
            one.write_all(b"x").await.unwrap();
            two.read_exact(&mut [0]).await.unwrap();
            spawn_local(async { Timer::after(Duration::from_millis(5)).await }).await;
            smol::timeout(Duration::from_millis(5), pending::<()>()).await.unwrap_err();
            let listener = Async::<TcpListener>::bind(("127.0.0.1", 0)).unwrap();
            let addr = listener.get_ref().local_addr().unwrap();
            let (accepted, connected) =
                future::try_zip(listener.accept(), Async::<TcpStream>::connect(addr))
                    .await
                    .unwrap();
            drop((accepted, connected));
            assert_eq!(block_on(async { 1 }), 1);
        });
        #[cfg(target_os = "linux")]
        assert_eq!(common::threads().len(), before, "{:?}", common::threads());
    });
}

/// Somebody else's future that gives its child a waker of its own, as many combinators do.
struct OwnWaker<F> {
    future: Pin<Box<F>>,
    waker: Arc<Relay>,
}

/// Notes that it was woken, and passes it on to whoever polled last.
#[derive(Default)]
struct Relay {
    woken: AtomicBool,
    parent: Mutex<Option<Waker>>,
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        let parent = self.parent.lock().unwrap().take();
        if let Some(parent) = parent {
            parent.wake();
        }
    }
}

impl<F: Future> OwnWaker<F> {
    fn new(future: F) -> Self {
        let waker = Arc::new(Relay::default());
        waker.woken.store(true, Ordering::SeqCst); // to be polled once
        OwnWaker { future: Box::pin(future), waker }
    }
}

impl<F: Future> Future for OwnWaker<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        *self.waker.parent.lock().unwrap() = Some(cx.waker().clone());
        if !self.waker.woken.swap(false, Ordering::SeqCst) {
            return Poll::Pending;
        }
        let waker = Waker::from(self.waker.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// All of `futures`, in the order in which they end: each is polled with its own waker, and only
/// when it was woken.
async fn unordered<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(OwnWaker::new).collect();
    let mut results = Vec::new();
    poll_fn(|cx| {
        waiting.retain_mut(|future| match Pin::new(future).poll(cx) {
            Poll::Ready(result) => {
                results.push(result);
                false
            }
            Poll::Pending => true,
        });
        if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results
}

/// Runs `body`, alone in its process, and fails if there are more threads afterwards than before.
#[cfg(target_os = "linux")]
#[track_caller]
fn starts_no_thread(what: &str, body: impl FnOnce()) {
    let before = common::threads();
    body();
    let after = common::threads();
    assert_eq!(after.len(), before.len(), "{what}: {before:?} became {after:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn combinators_with_wakers_of_their_own_need_no_helper_thread() {
    fresh_process(20, &[], || {
        let ms = Duration::from_millis;
        starts_no_thread("one timer", || block_on(OwnWaker::new(sleep(ms(5)))));
        starts_no_thread("timers, unordered", || {
            let ended = block_on(unordered((0..10).rev().map(|i| async move {
                sleep(ms(20 * i)).await;
                i
            })));
            assert_eq!(ended.len(), 10);
            assert_eq!(ended[0], 0);
        });
        // (Nor for wakers in wakers, which have no clone of the main future's while they are polled:
        // the runtime takes them for those of a foreign `block_on`, and helps.)
        starts_no_thread("sockets", || {
            block_on(async {
                let (mut one, mut two) = socket_pair();
                let reading = OwnWaker::new(async move { two.read_exact(&mut [0]).await.unwrap() });
                let writing = OwnWaker::new(async move {
                    sleep(ms(5)).await;
                    one.write_all(b"x").await.unwrap();
                });
                future::zip(reading, writing).await;
            });
        });
        // (Not for a combinator inside of a task: whom its wakers wake cannot be seen while it runs.)
        starts_no_thread("local tasks", || {
            block_on(async {
                let tasks = (0..3).map(|i| spawn_local(sleep(ms(i))));
                unordered(tasks.collect::<Vec<_>>()).await;
            });
        });
        starts_no_thread("an executor of its own", || {
            let (ex, local) = (smol::Executor::new(), smol::LocalExecutor::new());
            let tasks = [(); 3].map(|()| ex.spawn(sleep(ms(3))));
            block_on(ex.run(unordered(tasks)));
            let tasks = [(); 3].map(|()| local.spawn(sleep(ms(3))));
            block_on(local.run(unordered(tasks)));
        });
        starts_no_thread("a nested call", || {
            block_on(OwnWaker::new(async { block_on(unordered([sleep(ms(3)), sleep(ms(1))])) }));
        });
        starts_no_thread("a time-out", || {
            let timeout = smol::timeout(ms(5), pending::<()>());
            block_on(OwnWaker::new(timeout)).unwrap_err();
        });
    });
}

/// What has its own way to sleep, and is somewhere in our `block_on` or was a moment ago, needs
/// somebody to poll for it.
#[test]
fn a_foreign_block_on_within_ours_gets_its_timers_and_its_bytes() {
    fresh_process(20, &[], || {
        let foreign = || {
            foreign_block_on(async {
                let (mut one, mut two) = socket_pair();
                let writing = async {
                    sleep(Duration::from_millis(5)).await;
                    one.write_all(b"x").await.unwrap();
                };
                future::zip(writing, async { two.read_exact(&mut [0]).await.unwrap() }).await;
            })
        };
        block_on(async { foreign() });
        block_on(OwnWaker::new(async { foreign() }));
        block_on(async { spawn_local(async move { foreign() }).await });
        // Polled first by ours, then by the other one; and the other way round.
        let mut timer = Timer::after(Duration::from_millis(20));
        assert!(block_on(future::poll_once(&mut timer)).is_none());
        foreign_block_on(timer);
        let mut timer = OwnWaker::new(sleep(Duration::from_millis(20)));
        assert!(block_on(future::poll_once(&mut timer)).is_none());
        foreign_block_on(timer);
        let mut timer = OwnWaker::new(sleep(Duration::from_millis(20)));
        assert!(foreign_block_on(future::poll_once(&mut timer)).is_none());
        block_on(timer);
        // The waker's parent is a thread that sleeps on its own; another one is in our block_on.
        let done = Flag::new();
        thread::scope(|scope| {
            scope.spawn(|| block_on(done.wait()));
            foreign_block_on(OwnWaker::new(sleep(Duration::from_millis(5))));
            foreign();
            done.set();
        });
    });
}

// ---------- the first spawn of a process ----------

/// While the first worker is on its way, whoever is in `block_on` has to leave the task to it.
#[test]
fn the_first_task_of_a_process_runs_on_a_worker() {
    const KINDS: [&str; 10] = [
        "direct",
        "inside",
        "blocking",
        "yielding",
        "nested",
        "many",
        "both",
        "elsewhere",
        "elsewhere, short",
        "elsewhere, blocking",
    ];
    let kinds: Vec<_> = KINDS.iter().map(|&kind| [("KIND", kind)]).collect();
    // As many processes as it takes: it went wrong in every second one.
    let envs: Vec<_> = (0..15).flat_map(|_| kinds.iter().map(|env| &env[..])).collect();
    fresh_processes(30, &envs, || {
        let home = thread::current().id();
        let away = move || assert_ne!(thread::current().id(), home, "it runs in block_on");
        // Blocks its thread until the main future goes on.
        let blocking = move |receiver: mpsc::Receiver<()>| async move {
            away();
            receiver.recv_timeout(SOON).expect("the main future waits for a task that blocks");
        };
        match std::env::var("KIND").as_deref().unwrap_or("direct") {
            "inside" => block_on(async { spawn(async move { away() }).await }),
            "blocking" => {
                let (sender, receiver) = mpsc::channel();
                block_on(async {
                    let task = spawn(blocking(receiver));
                    future::yield_now().await;
                    sender.send(()).unwrap();
                    task.await;
                });
            }
            "yielding" => {
                let (sender, receiver) = mpsc::channel();
                block_on(async {
                    let task = spawn(blocking(receiver));
                    for _ in 0..1_000 {
                        future::yield_now().await;
                    }
                    sleep(Duration::from_millis(2)).await;
                    sender.send(()).unwrap();
                    task.await;
                });
            }
            "nested" => block_on(async {
                spawn_local(async move { block_on(spawn(async move { away() })) }).await
            }),
            "many" => block_on(async {
                let tasks: Vec<_> = (0..20).map(|_| spawn(async move { away() })).collect();
                for task in tasks {
                    task.await;
                }
            }),
            // A loop on this thread that is never asleep; the spawn is another one's.
            kind @ ("elsewhere" | "elsewhere, short") => thread::scope(|scope| {
                let (done, looping) = (Flag::new(), Flag::new());
                scope.spawn({
                    let (done, looping) = (done.clone(), looping.clone());
                    move || {
                        looping.wait_blocking();
                        let task = spawn(async move { thread::current().id() });
                        let id = foreign_block_on(task);
                        done.set();
                        assert_ne!(id, home, "it runs in block_on");
                    }
                });
                let turn = async || {
                    looping.set();
                    future::yield_now().await;
                };
                if kind == "elsewhere" {
                    block_on(async {
                        while !done.is_set() {
                            turn().await;
                        }
                    });
                } else {
                    while !done.is_set() {
                        block_on(turn());
                    }
                }
            }),
            // The task blocks until this loop ends, which is in its way if it runs here.
            "elsewhere, blocking" => thread::scope(|scope| {
                let (looping, begun) = (Flag::new(), Flag::new());
                let (release, released) = mpsc::channel();
                scope.spawn({
                    let (looping, begun) = (looping.clone(), begun.clone());
                    move || {
                        looping.wait_blocking();
                        foreign_block_on(spawn(async move {
                            begun.set();
                            blocking(released).await;
                        }));
                    }
                });
                block_on(async {
                    while !begun.is_set() {
                        looping.set();
                        future::yield_now().await;
                    }
                });
                release.send(()).unwrap();
            }),
            "both" => thread::scope(|scope| {
                let other = scope.spawn(move || {
                    let home = thread::current().id();
                    assert_ne!(block_on(spawn(async { thread::current().id() })), home);
                });
                block_on(spawn(async move { away() }));
                other.join().unwrap();
            }),
            _ => block_on(spawn(async move { away() })),
        }
    });
}

// ---------- the pool, nested ----------

/// blocking: two threads, nested `unblock`, deadlock.
#[test]
fn closures_on_a_full_pool_may_wait_for_the_pool() {
    fresh_processes(
        30,
        &[&[("BLOCKING_MAX_THREADS", "1")], &[("BLOCKING_MAX_THREADS", "2")]],
        || {
            fn nest(depth: u32) -> u32 {
                if depth == 0 { 0 } else { block_on(unblock(move || nest(depth - 1))) + 1 }
            }
            assert_eq!(block_on(unblock(|| nest(3))), 3);
            let towers: Vec<_> = (0..8).map(|_| unblock(|| nest(3))).collect();
            for tower in towers {
                assert_eq!(block_on(tower), 3);
            }
            // Through a task on a worker, and under a foreign block_on.
            let sum = block_on(unblock(|| {
                block_on(spawn(async { unblock(|| 1).await })) + foreign_block_on(unblock(|| 2))
            }));
            assert_eq!(sum, 3);
        },
    );
}

#[test]
fn closures_up_to_the_limit_run_at_the_same_time() {
    fresh_process(30, &[("BLOCKING_MAX_THREADS", "4")], || {
        for _ in 0..50 {
            let meet = Arc::new(Barrier::new(4));
            let tasks: Vec<_> = (0..4)
                .map(|_| {
                    let meet = meet.clone();
                    unblock(move || meet.wait().is_leader())
                })
                .collect();
            let leaders = block_on(async {
                let mut leaders = 0;
                for task in tasks {
                    leaders += u32::from(task.await);
                }
                leaders
            });
            assert_eq!(leaders, 1);
        }
    });
}

/// tokio #8056: a job comes when a thread of the pool is about to go idle.
#[test]
fn jobs_that_come_when_a_pool_thread_goes_idle_are_not_left_in_the_queue() {
    fresh_process(60, &[("BLOCKING_MAX_THREADS", "2")], || {
        for round in 0..5000u32 {
            for _ in 0..round % 64 {
                std::hint::spin_loop();
            }
            let (one, two) = (unblock(|| 1), unblock(|| 2));
            assert_eq!(foreign_block_on(async { one.await + two.await }), 3);
        }
    });
}

/// What such a combinator was seen to do in our loop says nothing of it in somebody else's.
#[test]
fn a_combinator_with_a_waker_of_its_own_works_in_a_foreign_block_on_inside_of_ours() {
    struct Forward(Waker);
    impl Wake for Forward {
        fn wake(self: Arc<Self>) {
            self.0.wake_by_ref();
        }
    }
    async fn combine<F: Future>(future: F) -> F::Output {
        let mut future = Box::pin(future);
        poll_fn(move |cx| {
            let waker = Waker::from(Arc::new(Forward(cx.waker().clone())));
            future.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await
    }
    fresh_process(20, &[], || {
        block_on(async {
            combine(sleep(Duration::from_millis(5))).await;
            foreign_block_on(combine(sleep(Duration::from_millis(5))));
            combine(sleep(Duration::from_millis(5))).await;
        });
    });
}
