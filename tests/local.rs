//! Futures that are not `Send` are polled and dropped on their own thread, always; a wake
//! from elsewhere only enqueues. However shortly their thread looks in, they progress; and a nested
//! `block_on` does not make them wait for each other.

mod common;

use common::{Flag, counting_waker, foreign_block_on, fresh_process, sleep, socket_pair, within};
use smol::{
    Async, LocalExecutor, Timer, block_on, future, prelude::*, spawn, spawn_local, unblock,
};
use std::{
    cell::{Cell, RefCell},
    future::{Future, pending, poll_fn},
    net::TcpStream,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Barrier, Mutex, mpsc},
    task::{Context, Poll, Waker},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// Not `Send`, and insists on it: aborts the process when it is dropped on another thread than it was made on.
struct AtHome(ThreadId, #[allow(dead_code)] Rc<()>);

impl AtHome {
    fn new() -> AtHome {
        AtHome(thread::current().id(), Rc::new(()))
    }

    fn check(&self) {
        if thread::current().id() != self.0 {
            eprintln!("a local future was touched by another thread");
            std::process::abort(); // a panic might be caught by the runtime
        }
    }
}

impl Drop for AtHome {
    fn drop(&mut self) {
        self.check();
    }
}

#[test]
fn local_tasks_share_what_is_not_send() {
    within(10, || {
        let sum = Rc::new(Cell::new(0));
        block_on(async {
            let tasks: Vec<_> = (0..10)
                .map(|i| {
                    let sum = sum.clone();
                    spawn_local(async move {
                        future::yield_now().await;
                        sum.set(sum.get() + i);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(sum.get(), 45);
    });
}

#[test]
fn a_local_task_is_driven_by_any_block_on_on_its_thread() {
    within(10, || {
        let count = Rc::new(Cell::new(0));
        spawn_local({
            let count = count.clone();
            async move {
                loop {
                    count.set(count.get() + 1);
                    future::yield_now().await;
                }
            }
        })
        .detach();
        assert_eq!(count.get(), 0);
        // Spawned outside, it starts in the first one, goes on in the second, and stands still in between.
        for _ in 0..2 {
            let before = count.get();
            block_on(async {
                while count.get() < before + 10 {
                    future::yield_now().await;
                }
            });
        }
        let after = count.get();
        foreign_block_on(future::yield_now());
        assert_eq!(count.get(), after);
    });
}

#[test]
fn a_block_on_inside_a_local_task_drives_the_other_local_tasks() {
    within(10, || {
        let result = block_on(async {
            spawn_local(async {
                let inner = spawn_local(async {
                    future::yield_now().await;
                    block_on(spawn_local(async { 1 })) + 1
                });
                block_on(inner) + 1
            })
            .await
        });
        assert_eq!(result, 3);
    });
}

#[test]
fn a_local_task_on_a_worker_thread_is_driven_by_a_block_on_there() {
    within(10, || {
        let result = block_on(spawn(async {
            block_on(async { spawn_local(async { Rc::new(5) }).await.as_ref() + 1 })
        }));
        assert_eq!(result, 6);
    });
}

#[test]
fn local_tasks_are_polled_and_dropped_at_home_wherever_they_are_woken() {
    within(20, || {
        for _ in 0..50 {
            let (wakers, to_wake) = mpsc::channel::<Waker>();
            let waking = thread::spawn(move || to_wake.iter().for_each(Waker::wake));
            block_on(async {
                let tasks: Vec<_> = (0..20)
                    .map(|_| {
                        let (home, wakers) = (AtHome::new(), wakers.clone());
                        spawn_local(async move {
                            let mut polls = 0;
                            poll_fn(|cx| {
                                home.check();
                                polls += 1;
                                if polls == 5 {
                                    return Poll::Ready(());
                                }
                                wakers.send(cx.waker().clone()).unwrap();
                                Poll::Pending
                            })
                            .await
                        })
                    })
                    .collect();
                for (i, task) in tasks.into_iter().enumerate() {
                    if i % 3 > 0 {
                        task.await;
                    } // the others are cancelled while they are woken
                }
            });
            drop(wakers);
            block_on(future::yield_now()); // cancelled tasks are dropped here, or at the end of the thread
            // The thread ends only when all senders are gone, that is: all futures.
            block_on(async {
                while !waking.is_finished() {
                    future::yield_now().await;
                }
            });
            waking.join().unwrap();
        }
    });
}

#[test]
fn a_wake_from_elsewhere_only_enqueues() {
    within(10, || {
        let ex = LocalExecutor::new();
        let (waker_to, waker) = mpsc::channel();
        let polls = Rc::new(Cell::new(0));
        let home = AtHome::new();
        let task = ex.spawn({
            let polls = polls.clone();
            poll_fn(move |cx| {
                home.check();
                polls.set(polls.get() + 1);
                let _ = waker_to.send(cx.waker().clone());
                if polls.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        assert!(ex.try_tick());
        assert!(!ex.try_tick());
        let waker = waker.recv().unwrap();
        thread::spawn(move || waker.wake()).join().unwrap();
        assert_eq!(polls.get(), 1);
        assert!(ex.try_tick());
        assert_eq!(polls.get(), 2);
        foreign_block_on(task);
    });
}

#[test]
fn a_wake_from_another_thread_gets_a_sleeping_block_on_to_its_local_task() {
    within(30, || {
        let (wakers, to_wake) = mpsc::channel::<Waker>();
        let waking = thread::spawn(move || to_wake.iter().for_each(Waker::wake));
        block_on(async {
            let task = spawn_local(async move {
                for _ in 0..2000 {
                    let mut sent = false;
                    poll_fn(|cx| {
                        if sent {
                            return Poll::Ready(());
                        }
                        sent = true;
                        wakers.send(cx.waker().clone()).unwrap();
                        Poll::Pending
                    })
                    .await;
                }
            });
            task.await; // the main future itself is woken only at the end
        });
        waking.join().unwrap();
    });
}

#[test]
fn a_local_task_cancelled_by_another_thread_dies_at_home() {
    within(20, || {
        for wait in [false, true] {
            let dropped = Rc::new(Cell::new(false));
            let home = AtHome::new();
            let on_drop = common::OnDrop({
                let dropped = dropped.clone();
                move || dropped.set(true)
            });
            let task = spawn_local(async move {
                let _captured = (home, on_drop);
                pending::<()>().await
            });
            block_on(future::yield_now());
            // The handle is `Send` because the result is.
            let canceller = thread::spawn(move || {
                if wait {
                    foreign_block_on(task.cancel())
                } else {
                    drop(task);
                    Some(())
                }
            });
            block_on(async {
                while !dropped.get() {
                    future::yield_now().await;
                }
            });
            assert_eq!(canceller.join().unwrap(), if wait { None } else { Some(()) });
        }
    });
}

#[test]
fn a_thread_that_ends_takes_its_local_tasks_along() {
    within(20, || {
        let (waker_to, waker) = mpsc::channel::<Waker>();
        let dropped = Flag::new();
        let (guard, never_polled) = (common::set_on_drop(&dropped), Flag::new());
        let second = common::set_on_drop(&never_polled);
        thread::spawn(move || {
            let (home, other_home) = (AtHome::new(), AtHome::new());
            spawn_local(async move {
                let _captured = (home, guard);
                poll_fn(|cx| {
                    waker_to.send(cx.waker().clone()).unwrap();
                    Poll::<()>::Pending
                })
                .await
            })
            .detach();
            block_on(future::yield_now());
            spawn_local(async move { drop((other_home, second)) }).detach();
        })
        .join()
        .unwrap();
        assert!(dropped.is_set() && never_polled.is_set(), "the futures of a thread outlive it");
        waker.recv().unwrap().wake(); // says nothing to anybody
    });
}

/// async-executor #163, #164; zed #21020.
#[test]
fn dropping_a_local_executor_while_another_thread_wakes_its_tasks_is_safe() {
    within(60, || {
        let (jobs, to_wake) = mpsc::channel::<(Arc<Barrier>, Vec<Waker>)>();
        let waking = thread::spawn(move || {
            for (together, wakers) in to_wake {
                together.wait();
                wakers.into_iter().for_each(Waker::wake);
            }
        });
        for round in 0..3000 {
            let ex = LocalExecutor::new();
            let wakers = Rc::new(RefCell::new(Vec::new()));
            for _ in 0..1 + round % 3 {
                let (home, wakers) = (AtHome::new(), wakers.clone());
                ex.spawn(poll_fn(move |cx| {
                    home.check();
                    wakers.borrow_mut().push(cx.waker().clone());
                    Poll::<()>::Pending
                }))
                .detach();
            }
            while ex.try_tick() {}
            let together = Arc::new(Barrier::new(2));
            jobs.send((together.clone(), wakers.take())).unwrap();
            together.wait();
            drop(ex);
        }
        drop(jobs);
        waking.join().unwrap();
    });
}

#[test]
fn a_local_executor_runs_ticks_and_says_when_it_is_empty() {
    within(10, || {
        let ex = LocalExecutor::new();
        assert!(ex.is_empty() && !ex.try_tick() && LocalExecutor::default().is_empty());
        let text = Rc::new(String::from("local"));
        let task = ex.spawn({
            let text = text.clone();
            async move { text.len() }
        });
        assert!(!ex.is_empty());
        assert_eq!(block_on(ex.run(task)), 5);
        assert!(ex.is_empty());
        let task = ex.spawn(async { Timer::after(Duration::from_millis(5)).await });
        block_on(async {
            while !task.is_finished() {
                ex.tick().await;
            }
        });
        assert!(format!("{ex:?}").contains("LocalExecutor"));
        drop(text);
    });
}

#[test]
fn local_executors_nest_and_take_turns_on_one_thread() {
    within(10, || {
        let (one, two) = (Rc::new(LocalExecutor::new()), Rc::new(LocalExecutor::new()));
        let result = block_on(one.run({
            let (one, two) = (one.clone(), two.clone());
            async move {
                let inner = two.clone();
                let a = one
                    .spawn(async move { block_on(inner.run(inner.spawn(async { Rc::new(1) }))) });
                let b = two.spawn(async { Rc::new(2) });
                let (a, b) = future::zip(a, two.run(b)).await;
                *a + *b
            }
        }));
        assert_eq!(result, 3);
    });
}

#[test]
fn a_local_executor_survives_its_run_being_dropped_in_the_middle() {
    within(10, || {
        let ex = LocalExecutor::new();
        let count = Rc::new(Cell::new(0));
        for _ in 0..300 {
            let count = count.clone();
            ex.spawn(async move {
                future::yield_now().await;
                count.set(count.get() + 1);
            })
            .detach();
        }
        {
            let mut run = pin!(ex.run(pending::<()>()));
            let (waker, _) = counting_waker();
            assert!(run.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        while ex.try_tick() {}
        assert_eq!(count.get(), 300);
    });
}

#[test]
fn a_global_task_woken_by_a_local_one_runs_on_a_worker() {
    within(20, || {
        let home = thread::current().id();
        let threads = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..200 {
            let flag = Flag::new();
            let task = spawn({
                let (flag, threads) = (flag.clone(), threads.clone());
                async move {
                    flag.wait().await;
                    threads.lock().unwrap().push(thread::current().id());
                }
            });
            block_on(async {
                let local = spawn_local(async move { flag.set() });
                task.await;
                local.await;
            });
        }
        assert!(!threads.lock().unwrap().contains(&home), "block_on runs what is not its own");
    });
}

#[test]
fn local_tasks_alone_start_no_thread() {
    fresh_process(10, &[], || {
        #[cfg(target_os = "linux")]
        let before = common::threads().len();
        block_on(async {
            let task = spawn_local(async {
                Timer::after(Duration::from_millis(5)).await;
                Rc::new(1)
            });
            assert_eq!(*task.await, 1);
        });
        #[cfg(target_os = "linux")]
        assert_eq!(common::threads().len(), before, "{:?}", common::threads());
    });
}

// ---------- short drives ----------

/// A bound against hangs.
const SOON: Duration = Duration::from_secs(5);

/// What waits, in a local task, for something that comes from elsewhere.
const WAITS: [&str; 7] =
    ["a timer", "timers", "a socket", "a job", "a wake", "a task", "a child of its own"];

async fn wait_for(what: &str) {
    let byte = || {
        let (ours, mut theirs): (Async<TcpStream>, _) = socket_pair();
        let sending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            block_on(theirs.write_all(b"x")).unwrap();
        });
        (ours, sending)
    };
    match what {
        "a timer" => sleep(Duration::from_millis(10)).await,
        "timers" => {
            for millis in 0..6 {
                sleep(Duration::from_millis(millis)).await;
            }
        }
        "a socket" => {
            let (mut ours, sending) = byte();
            ours.read_exact(&mut [0]).await.unwrap();
            sending.join().unwrap();
        }
        "a job" => unblock(|| thread::sleep(Duration::from_millis(5))).await,
        "a wake" => {
            let flag = Flag::new();
            let setting = thread::spawn({
                let flag = flag.clone();
                move || {
                    thread::sleep(Duration::from_millis(5));
                    flag.set();
                }
            });
            flag.wait().await;
            setting.join().unwrap();
        }
        "a task" => spawn(sleep(Duration::from_millis(5))).await,
        "a child of its own" => {
            for _ in 0..300 {
                future::yield_now().await;
            }
            sleep(Duration::from_millis(1)).await;
        }
        _ => unreachable!(),
    }
}

/// Local tasks that never leave their queue empty, until they are told to end.
const HOGS: [&str; 4] = ["none", "yields", "spawns its successor", "two wake each other"];

/// Where local tasks live: the thread's own executor, or one made by the test.
#[derive(Clone)]
enum Home {
    Thread,
    Own(Rc<LocalExecutor<'static>>),
}

impl Home {
    fn spawn(&self, future: impl Future<Output = ()> + 'static) -> smol::Task<()> {
        match self {
            Home::Thread => spawn_local(future),
            Home::Own(ex) => ex.spawn(future),
        }
    }

    fn hog(&self, kind: &str, until: &Rc<Cell<bool>>) {
        fn successor(home: Home, until: Rc<Cell<bool>>) -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(async move {
                if !until.get() {
                    home.spawn(successor(home.clone(), until)).detach();
                }
            })
        }
        async fn yields(until: Rc<Cell<bool>>) {
            while !until.get() {
                future::yield_now().await;
            }
        }
        async fn ping_pong(
            until: Rc<Cell<bool>>,
            own: Rc<RefCell<Option<Waker>>>,
            other: Rc<RefCell<Option<Waker>>>,
        ) {
            poll_fn(|cx| {
                *own.borrow_mut() = Some(cx.waker().clone());
                let partner = other.borrow_mut().take();
                if let Some(partner) = partner {
                    partner.wake();
                }
                if until.get() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        match kind {
            "none" => {}
            "yields" => self.spawn(yields(until.clone())).detach(),
            "spawns its successor" => {
                self.spawn(successor(self.clone(), until.clone())).detach();
            }
            "two wake each other" => {
                let [one, two] = [(); 2].map(|()| Rc::new(RefCell::new(None)));
                self.spawn(ping_pong(until.clone(), one.clone(), two.clone())).detach();
                self.spawn(ping_pong(until.clone(), two, one)).detach();
            }
            _ => unreachable!(),
        }
    }
}

/// For each kind of hog and each kind of wait: `drive` is called again and again, and the task that
/// waits has to come to its end.
fn short_drives_finish_what_waits(name: &str, home: &Home, drive: &dyn Fn()) {
    let mut starved = Vec::new();
    for hog in HOGS {
        for what in WAITS {
            let until = Rc::new(Cell::new(false));
            home.hog(hog, &until);
            let task = home.spawn(wait_for(what));
            let start = Instant::now();
            while !task.is_finished() && start.elapsed() < SOON && starved.len() < 4 {
                drive();
            }
            if !task.is_finished() {
                starved.push((hog, what));
            }
            until.set(true);
            drop(task);
            (0..100).for_each(|_| drive());
        }
    }
    assert!(starved.is_empty(), "{name}: of hog and wait, these starve: {starved:?}");
}

/// The loop of a game or of a window: it calls in for a moment, again and again.
#[test]
fn local_tasks_make_progress_when_their_thread_is_in_block_on_for_a_moment_only() {
    fresh_process(120, &[], || {
        let home = Home::Thread;
        short_drives_finish_what_waits("yield_now", &home, &|| block_on(future::yield_now()));
        short_drives_finish_what_waits("yields twice", &home, &|| {
            block_on(async {
                future::yield_now().await;
                future::yield_now().await;
            });
        });
        short_drives_finish_what_waits("a local task", &home, &|| block_on(spawn_local(async {})));
    });
}

#[test]
fn local_tasks_make_progress_when_their_executor_ticks() {
    fresh_process(120, &[], || {
        let ex = Rc::new(LocalExecutor::new());
        let home = Home::Own(ex.clone());
        short_drives_finish_what_waits("try_tick", &home, &|| _ = ex.try_tick());
        // A tick that has nothing to do waits; it is given up at once.
        short_drives_finish_what_waits("tick", &home, &|| {
            block_on(future::or(ex.tick(), future::yield_now()));
        });
        short_drives_finish_what_waits("tick, foreign", &home, &|| {
            foreign_block_on(future::or(ex.tick(), future::yield_now()));
        });
        // Each tick on its own, as far as there is something to do.
        short_drives_finish_what_waits("a poll of tick", &home, &|| {
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = pin!(ex.tick()).poll(cx);
        });
    });
}

#[test]
fn local_tasks_make_progress_when_their_executor_runs_for_a_moment_only() {
    fresh_process(120, &[], || {
        let ex = Rc::new(LocalExecutor::new());
        let home = Home::Own(ex.clone());
        short_drives_finish_what_waits("run", &home, &|| block_on(ex.run(future::yield_now())));
        short_drives_finish_what_waits("run, foreign", &home, &|| {
            foreign_block_on(ex.run(future::yield_now()));
        });
        short_drives_finish_what_waits("run of a task", &home, &|| {
            block_on(ex.run(ex.spawn(async {})));
        });
        short_drives_finish_what_waits("a poll of run", &home, &|| {
            let cx = &mut Context::from_waker(Waker::noop());
            let _ = pin!(ex.run(pending::<()>())).poll(cx);
        });
    });
}

/// The same thread drives in turns: what one kind of drive has left behind, the other must not forget.
#[test]
fn short_drives_of_several_kinds_add_up() {
    fresh_process(60, &[], || {
        let ex = Rc::new(LocalExecutor::new());
        let (home, turn) = (Home::Own(ex.clone()), Cell::new(0));
        let drive = || {
            turn.set(turn.get() + 1);
            match turn.get() % 4 {
                0 => _ = ex.try_tick(),
                1 => block_on(ex.run(future::yield_now())),
                2 => foreign_block_on(future::or(ex.tick(), future::yield_now())),
                _ => block_on(future::yield_now()),
            }
        };
        short_drives_finish_what_waits("in turns", &home, &drive);
        short_drives_finish_what_waits("in turns, of the thread", &Home::Thread, &drive);
    });
}

/// One always yields, the others wait their turn; none is passed over.
#[test]
fn local_tasks_progress_alike_under_short_drives() {
    within(30, || {
        type Drive<'a> = &'a dyn Fn(&LocalExecutor<'static>);
        let drives: [(&str, Drive<'_>); 3] = [
            ("try_tick", &|ex| _ = ex.try_tick()),
            ("run", &|ex| block_on(ex.run(future::yield_now()))),
            ("tick", &|ex| block_on(future::or(ex.tick(), future::yield_now()))),
        ];
        for (name, drive) in drives {
            let ex = LocalExecutor::new();
            let counts: Rc<[Cell<u32>; 20]> = Rc::default();
            for i in 0..20 {
                let counts = counts.clone();
                ex.spawn(async move {
                    loop {
                        counts[i].set(counts[i].get() + 1);
                        future::yield_now().await;
                    }
                })
                .detach();
            }
            let start = Instant::now();
            while counts.iter().map(Cell::get).max() < Some(1_000) && start.elapsed() < SOON {
                drive(&ex);
            }
            let (min, max) =
                (counts.iter().map(Cell::get).min(), counts.iter().map(Cell::get).max());
            assert!(min.unwrap() * 4 >= max.unwrap(), "{name}: from {min:?} to {max:?} polls");
        }
    });
}

// ---------- block_on inside a local task ----------

/// It waits for a timer, and nobody must be put on top of it who waits for it in turn.
#[test]
fn local_tasks_that_block_for_each_other_do_not_deadlock() {
    fresh_process(20, &[], || {
        for kind in 0..4 {
            let flag = Flag::new();
            let first = {
                let flag = flag.clone();
                async move {
                    match kind {
                        0 => block_on(sleep(Duration::from_millis(20))),
                        1 => block_on(unblock(|| thread::sleep(Duration::from_millis(20)))),
                        2 => block_on(spawn(sleep(Duration::from_millis(20)))),
                        _ => {
                            let (mut ours, mut theirs) = socket_pair();
                            let sending = thread::spawn(move || {
                                thread::sleep(Duration::from_millis(20));
                                block_on(theirs.write_all(b"x")).unwrap();
                            });
                            block_on(ours.read_exact(&mut [0])).unwrap();
                            sending.join().unwrap();
                        }
                    }
                    flag.set();
                }
            };
            let second = async move { block_on(flag.wait()) };
            block_on(async {
                let first = spawn_local(first);
                let second = spawn_local(second);
                first.await;
                second.await;
            });
        }
    });
}

/// A lock of std that a task holds while it blocks: a sibling on the same stack could never get it.
#[test]
fn a_local_task_that_blocks_with_a_lock_in_hand_does_not_meet_itself() {
    fresh_process(20, &[], || {
        let lock = Rc::new(RefCell::new(0));
        block_on(async {
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let lock = lock.clone();
                    spawn_local(async move {
                        let mut held = lock.try_borrow_mut().expect("a sibling holds it");
                        block_on(sleep(Duration::from_millis(2)));
                        *held += 1;
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*lock.borrow(), 10);
    });
}

/// A sibling that blocks for long does so in its own time, not in that of one who blocks shortly.
#[test]
fn a_short_block_on_in_a_local_task_is_short_beside_a_long_one() {
    fresh_process(60, &[], || {
        let best = (0..3).map(|_| {
            let took = Rc::new(Cell::new(Duration::ZERO));
            block_on(async {
                let short = spawn_local({
                    let took = took.clone();
                    async move {
                        let start = Instant::now();
                        block_on(sleep(Duration::from_millis(1)));
                        took.set(start.elapsed());
                    }
                });
                let long = spawn_local(async { block_on(sleep(Duration::from_millis(500))) });
                // The same with work that does not wait at all.
                let busy = spawn_local(async { thread::sleep(Duration::from_millis(500)) });
                future::zip(short, future::zip(long, busy)).await;
            });
            took.get()
        });
        let best = best.min().unwrap();
        assert!(best < Duration::from_millis(250), "a block_on of 1 ms takes {best:?}");
    });
}

/// Each of `count` local tasks calls `block`, and all come to their end.
fn local_tasks_that_block(count: u32, block: fn()) {
    let ended = Rc::new(Cell::new(0));
    block_on(async {
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let ended = ended.clone();
                spawn_local(async move {
                    block();
                    ended.set(ended.get() + 1);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
    });
    assert_eq!(ended.get(), count);
}

/// They all want to block at once; the stack must not grow with their number.
#[test]
fn twenty_thousand_local_tasks_that_block_do_not_overflow_the_stack() {
    fresh_process(60, &[], || {
        local_tasks_that_block(20_000, || block_on(future::yield_now()));
        local_tasks_that_block(20_000, || block_on(sleep(Duration::from_micros(1))));
        local_tasks_that_block(20_000, || block_on(spawn(async {})));
    });
}

/// Its siblings, which are queued before the child, would wait for children of theirs.
#[test]
fn local_tasks_that_block_for_children_of_their_own_all_get_them() {
    fresh_process(30, &[], || {
        for count in [2, 10, 100] {
            local_tasks_that_block(count, || block_on(spawn_local(async {})));
            local_tasks_that_block(count, || block_on(spawn_local(future::yield_now())));
            local_tasks_that_block(count, || {
                block_on(spawn_local(sleep(Duration::from_micros(100))));
                block_on(spawn_local(unblock(|| ())));
            });
        }
    });
}

/// The same, with as many as no stack can hold on top of each other.
#[test]
fn twenty_thousand_local_tasks_that_block_for_children_do_not_overflow_the_stack() {
    fresh_process(60, &[], || {
        local_tasks_that_block(20_000, || block_on(spawn_local(async {})));
        local_tasks_that_block(20_000, || {
            block_on(spawn_local(future::yield_now()));
            block_on(future::yield_now());
        });
    });
}

/// What is waited for is local, so nobody but this thread can help.
#[test]
fn a_block_on_of_a_local_task_inside_a_local_task_finishes() {
    fresh_process(30, &[], || {
        // New, woken by a timer, woken from another thread, and already on its way.
        let number = block_on(async {
            let early = spawn_local(async {
                sleep(Duration::from_millis(5)).await;
                4
            });
            spawn_local(async move {
                let new = block_on(spawn_local(async { 1 }));
                let timed = block_on(spawn_local(async {
                    sleep(Duration::from_millis(5)).await;
                    2
                }));
                let woken = block_on(spawn_local(async { unblock(|| 3).await }));
                new + timed + woken + block_on(early)
            })
            .await
        });
        assert_eq!(number, 10);
        // Through a second task that the first one waits for; through an executor of its own.
        let number = block_on(async {
            spawn_local(async {
                let inner = spawn_local(async { spawn_local(async { 1 }).await + 1 });
                block_on(async { inner.await + 1 })
            })
            .await
        });
        assert_eq!(number, 3);
        let own = Rc::new(LocalExecutor::new());
        let number =
            block_on(own.run(own.spawn({
                let own = own.clone();
                async move {
                    block_on(own.run(own.spawn(async { 1 }))) + block_on(spawn_local(async { 2 }))
                }
            })));
        assert_eq!(number, 3);
    });
}

/// What the call inside of it waited for says nothing of what it waits for itself.
#[test]
fn a_block_on_after_one_inside_of_it_runs_the_sibling_that_it_waits_for() {
    fresh_process(20, &[], || {
        let flag = Flag::new();
        let waits = {
            let flag = flag.clone();
            async move {
                block_on(async {
                    // Its last poll looks at the timer as well, and is ready all the same.
                    let hour = Duration::from_secs(3600);
                    block_on(future::or(sleep(hour), future::yield_now()));
                    flag.wait().await;
                })
            }
        };
        block_on(async {
            let waits = spawn_local(waits);
            let sibling = spawn_local(async move { flag.set() });
            waits.await;
            sibling.await;
        });
    });
}
