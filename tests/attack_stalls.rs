//! Attacks on the watch for stalls: reports and destructors that call back, panics, nesting.

mod common;

use common::{OnDrop, eventually, fresh_process, within};
use smol::{Executor, LocalExecutor, Stall, Timer, future};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_millis(20);

/// Begins to watch, and gives the stalls as they are told.
fn stalls() -> mpsc::Receiver<Stall> {
    stalls_of(LIMIT)
}

fn stalls_of(limit: Duration) -> mpsc::Receiver<Stall> {
    let (sender, stalls) = mpsc::channel();
    smol::on_stall(limit, move |stall| _ = sender.send(stall)).unwrap();
    stalls
}

fn list() -> String {
    format!("{:?}", smol::tasks())
}

/// Longer than it may take from one poll to the one inside of it.
const LONG: Duration = Duration::from_millis(100);

/// Whether the first stall that is told is of `line`, in one of twenty rounds. Each gives the stalls
/// back. A system that holds a thread up between two polls makes a stall of the outer one.
fn tells_of(line: u32, round: impl Fn(Stalls) -> (Stall, Stalls)) -> bool {
    let mut stalls = Some(stalls_of(LONG));
    (0..20).any(|_| {
        let (told, given_back) = round(stalls.take().unwrap());
        while given_back.try_recv().is_ok() {}
        stalls = Some(given_back);
        told.place.line() == line
    })
}

type Stalls = mpsc::Receiver<Stall>;

#[test]
fn the_task_that_blocks_is_told_and_not_the_one_that_runs_its_executor() {
    fresh_process(60, &[], || {
        let line = line!() + 4;
        let told = tells_of(line, |stalls| {
            let outer = smol::spawn(async move {
                let ex = Executor::new();
                let blocks = ex.spawn(async move { (stalls.recv().unwrap(), stalls) });
                ex.run(blocks).await
            });
            smol::block_on(outer)
        });
        assert!(told);
    });
}

#[test]
fn a_local_task_that_blocks_is_told_and_not_the_one_that_runs_its_executor() {
    fresh_process(60, &[], || {
        let line = line!() + 4;
        let told = tells_of(line, |stalls| {
            let outer = smol::spawn_local(async move {
                let ex = LocalExecutor::new();
                let blocks = ex.spawn(async move { (stalls.recv().unwrap(), stalls) });
                ex.run(blocks).await
            });
            smol::block_on(outer)
        });
        assert!(told);
    });
}

#[test]
fn a_report_whose_destructor_panics_does_not_end_the_watch() {
    fresh_process(60, &[], || {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("by the destructor of the report");
            }
        }
        let (sender, second) = mpsc::channel();
        let (bomb, mut sender) = (Bomb, Some(sender));
        smol::on_stall(LIMIT, move |_| {
            let _ = &bomb;
            let Some(sender) = sender.take() else { return };
            // It takes its own place, and is dropped where it was called.
            smol::on_stall(LIMIT, move |stall| _ = sender.send(stall)).unwrap();
        })
        .unwrap();
        smol::block_on(smol::spawn(async { thread::sleep(LIMIT * 5) }));
        let line = line!() + 1;
        let task = smol::spawn(async move { second.recv_timeout(Duration::from_secs(10)) });
        let told = smol::block_on(task).expect("nothing is told any more");
        assert_eq!(told.place.line(), line);
    });
}

#[test]
fn a_report_may_block_on_list_tasks_and_be_dropped_by_its_successor() {
    fresh_process(60, &[("SMOL_THREADS", "1")], || {
        let (sender, first) = mpsc::channel();
        let on_drop = {
            let sender = sender.clone();
            OnDrop(move || _ = sender.send(format!("dropped {}", list().len())))
        };
        smol::on_stall(LIMIT, move |stall| {
            let _ = &on_drop;
            let inner = smol::spawn_local(async { Timer::after(LIMIT).await });
            smol::block_on(inner);
            let answer = smol::block_on(smol::unblock(|| 5));
            _ = sender.send(format!("{stall} {} {answer}", list()));
        })
        .unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let task = smol::spawn(async move { stopped.recv().is_ok() });
        let text = first.recv().unwrap();
        assert!(text.contains("running for"), "{text}");
        let second = stalls();
        assert!(first.recv().unwrap().starts_with("dropped"));
        second.recv().unwrap();
        stop.send(()).unwrap();
        assert!(smol::block_on(task));
    });
}

#[test]
fn tasks_that_panic_or_are_cancelled_or_never_run_leave_the_list() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let _stalls = stalls();
        let lists = Arc::new(Mutex::new(Vec::new()));
        let look = || {
            let lists = lists.clone();
            OnDrop(move || lists.lock().unwrap().push(list()))
        };
        let guards = [look(), look(), look(), look(), look(), look()];
        let [a, b, c, d, e, f] = guards;
        let panics = smol::spawn(async move {
            let _a = a;
            panic!("of a task");
        });
        let cancelled = smol::spawn(async move {
            let _b = b;
            future::pending::<()>().await
        });
        let ex = Executor::new();
        ex.spawn(async move { drop(c) }).detach();
        let local = LocalExecutor::new();
        local.spawn(async move { drop(d) }).detach();
        let dropped = smol::spawn_local(async move { drop(e) });
        let closure = smol::unblock(move || {
            let _f = f;
            panic!("of a closure");
        });
        drop((cancelled, ex, local, dropped));
        let panics = std::panic::catch_unwind(|| smol::block_on::<()>(panics));
        let closure = std::panic::catch_unwind(|| smol::block_on::<()>(closure));
        assert!(panics.is_err() && closure.is_err());
        smol::block_on(future::yield_now());
        eventually(|| list() == "[]");
        assert_eq!(lists.lock().unwrap().len(), 6);
    });
}

#[test]
fn large_futures_need_no_larger_stack_while_they_are_watched() {
    fresh_process(60, &[], || {
        let _stalls = stalls();
        let small = thread::Builder::new().stack_size(128 << 10);
        let spawns = || {
            let big = async {
                let bytes = [1_u8; 12 << 10];
                future::yield_now().await;
                bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>()
            };
            smol::spawn(big)
        };
        let task = small.spawn(spawns).unwrap().join().unwrap();
        assert_eq!(smol::block_on(task), 12 << 10);
    });
}

#[test]
fn a_hundred_thousand_watched_tasks_are_listed_and_forgotten() {
    fresh_process(120, &[], || {
        let _stalls = stalls();
        let ex = Executor::new();
        for _ in 0..100_000 {
            ex.spawn(future::pending::<()>()).detach();
        }
        assert_eq!(format!("{:#?}", smol::tasks()).lines().count(), 100_002);
        smol::block_on(ex.run(Timer::after(LIMIT)));
        drop(ex);
        assert_eq!(list(), "[]");
    });
}

#[test]
fn threads_that_end_may_spawn_and_list_in_their_destructors() {
    fresh_process(60, &[("SMOL_STALLS", "20")], || {
        type Late = OnDrop<Box<dyn FnMut()>>;
        thread_local! {
            static LATE: std::cell::RefCell<Option<Late>> = None.into();
        }
        let (sender, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            LATE.set(Some(OnDrop(Box::new(move || {
                let task = smol::spawn(async { 7 });
                let answer = smol::block_on(task);
                _ = sender.send((answer, list()));
            }))));
            smol::spawn_local(future::pending::<()>()).detach();
            smol::block_on(smol::spawn(async {}));
        });
        thread.join().unwrap();
        assert_eq!(ended.recv().unwrap().0, 7);
        eventually(|| list() == "[]");
    });
}

#[test]
fn a_watch_that_cannot_begin_drops_its_report() {
    fresh_process(60, &[("RUST_MIN_STACK", "99999999999999")], || {
        let (sender, receiver) = mpsc::channel::<()>();
        let report = move |_| _ = sender.send(());
        if smol::on_stall(LIMIT, report).is_err() {
            let end = receiver.recv_timeout(Duration::from_secs(2));
            assert_eq!(end, Err(mpsc::RecvTimeoutError::Disconnected));
        }
        assert_eq!(smol::block_on(smol::spawn(async { 1 })), 1);
    });
}

#[test]
fn the_environment_does_not_take_the_place_of_the_programs_own_report() {
    fresh_process(60, &[("SMOL_STALLS", "1")], || {
        let stalls = stalls();
        let line = line!() + 1;
        let task = smol::spawn(async move { stalls.recv().unwrap() });
        assert_eq!(smol::block_on(task).place.line(), line);
    });
}

#[test]
fn a_destructor_of_a_cancelled_task_that_blocks_is_told() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let stalls = stalls();
        let line = line!() + 1;
        let task = smol::spawn(async move {
            let _guard = OnDrop(|| thread::sleep(LIMIT * 10));
            future::pending::<()>().await
        });
        eventually(|| list().contains("polled 1 times, waiting"));
        drop(task);
        let told = stalls.recv_timeout(LIMIT * 40);
        assert_eq!(told.map(|stall| stall.place.line()), Ok(line));
    });
}

#[cfg(unix)]
#[test]
fn a_child_of_a_fork_after_on_stall_does_not_hang() {
    fresh_process(60, &[], || {
        let _stalls = stalls();
        match fork::fork().unwrap() {
            fork::Fork::Child => {
                let spawns = || smol::block_on(smol::spawn(async { 1 }));
                let _ = std::panic::catch_unwind(spawns);
                std::process::exit(0);
            }
            fork::Fork::Parent(pid) => {
                within(20, || fork::waitpid(pid).unwrap());
            }
        }
    });
}
