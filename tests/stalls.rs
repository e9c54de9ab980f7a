//! A task that keeps its thread is told, with the place where it was spawned.

mod common;

use common::{eventually, fresh_process, fresh_process_output};
use smol::{Executor, LocalExecutor, Stall, Timer};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_millis(10);

/// Begins to watch, and gives the stalls as they are told.
fn stalls() -> mpsc::Receiver<Stall> {
    let (sender, stalls) = mpsc::channel();
    smol::on_stall(LIMIT, move |stall| sender.send(stall).unwrap_or(())).unwrap();
    stalls
}

/// A place is what was typed on this line of this file.
#[track_caller]
fn assert_told(stall: Stall, line: u32) {
    assert_eq!((stall.place.file(), stall.place.line()), (file!(), line), "{stall}");
    assert!(stall.time >= LIMIT, "{stall}");
}

#[test]
fn a_task_that_computes_is_told_with_its_place() {
    fresh_process(60, &[], || {
        let stalls = stalls();
        let line = line!() + 1;
        let task = smol::spawn(async move {
            loop {
                if let Ok(stall) = stalls.try_recv() {
                    break stall;
                }
            }
        });
        assert_told(smol::block_on(task), line);
    });
}

#[test]
fn a_task_that_sleeps_in_the_kernel_or_waits_for_a_lock_is_told() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let stalls = stalls();
        let sleeps = async move { (stalls.recv().unwrap(), stalls) };
        let (line, sleeps) = (line!(), smol::spawn(sleeps));
        let (stall, stalls) = smol::block_on(sleeps);
        assert_told(stall, line);

        let mutex = Arc::new(Mutex::new(()));
        let guard = mutex.lock().unwrap();
        let (wanted, line) = (mutex.clone(), line!() + 1);
        let waits = smol::spawn(async move { drop(wanted.lock()) });
        assert_told(stalls.recv().unwrap(), line);
        drop(guard);
        smol::block_on(waits);
    });
}

#[test]
fn a_task_in_a_nested_block_on_is_told_and_not_the_one_that_it_waits_for() {
    fresh_process(60, &[], || {
        let stalls = stalls();
        let (sender, told) = mpsc::channel::<()>();
        let waited_for = smol::unblock(move || told.recv());
        let line = line!() + 1;
        let task = smol::spawn(async move { smol::block_on(waited_for).is_ok() });
        assert_told(stalls.recv().unwrap(), line);
        sender.send(()).unwrap();
        assert!(smol::block_on(task));
    });
}

#[test]
fn tasks_of_all_executors_are_told() {
    fresh_process(60, &[], || {
        let stalls = Arc::new(Mutex::new(stalls()));
        let until_told = || {
            let stalls = stalls.clone();
            async move { stalls.lock().unwrap().recv().unwrap() }
        };
        let (line, local) = (line!(), smol::spawn_local(until_told()));
        assert_told(smol::block_on(local), line);
        let ex = Executor::new();
        let (line, task) = (line!(), ex.spawn(until_told()));
        assert_told(smol::block_on(ex.run(task)), line);
        let ex = LocalExecutor::new();
        let (line, task) = (line!(), ex.spawn(until_told()));
        assert_told(smol::block_on(ex.run(task)), line);
    });
}

#[test]
fn nothing_is_told_of_a_task_that_awaits_or_of_a_closure_on_the_pool() {
    fresh_process(60, &[], || {
        let stalls = stalls();
        let awaits = smol::spawn(async {
            for _ in 0..10 {
                Timer::after(LIMIT).await;
            }
        });
        let closure = smol::unblock(|| thread::sleep(LIMIT * 10));
        smol::block_on(async { (awaits.await, closure.await) });
        // What was to be told of them comes first.
        let line = line!() + 1;
        smol::block_on(smol::spawn(async { thread::sleep(LIMIT * 20) }));
        assert_told(stalls.recv().unwrap(), line);
    });
}

#[test]
fn a_place_is_told_once_and_another_not_within_the_same_second() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let stalls = stalls();
        let stop = Arc::new(Mutex::new(false));
        let sleep = |stop: &Arc<Mutex<bool>>| {
            let stop = stop.clone();
            async move { eventually(|| *stop.lock().unwrap()) }
        };
        let (line, first) = (line!(), [(); 2].map(|()| smol::spawn(sleep(&stop))));
        assert_told(stalls.recv().unwrap(), line);
        let start = Instant::now();
        let (line, second) = (line!(), smol::spawn_local(sleep(&stop)));
        let other = thread::spawn(move || {
            let stall = stalls.recv().unwrap();
            (stall, start.elapsed(), stop)
        });
        let other = thread::spawn(move || {
            let (stall, after, stop) = other.join().unwrap();
            *stop.lock().unwrap() = true;
            (stall, after)
        });
        smol::block_on(second);
        let (stall, after) = other.join().unwrap();
        assert_told(stall, line);
        assert!(after > Duration::from_millis(500), "{after:?}");
        smol::block_on(async {
            for task in first {
                task.await;
            }
        });
    });
}

#[test]
fn the_environment_turns_it_on_and_a_line_is_printed() {
    let line = line!() + 3;
    let ended = fresh_process_output(60, &[("SMOL_STALLS", "20")], || {
        smol::block_on(async {
            smol::spawn(async { thread::sleep(Duration::from_millis(300)) }).await;
        });
    });
    if let Some(ended) = ended {
        let says = format!("smol: a task spawned at {}:{line}:", file!());
        let found = ended.output.lines().find(|text| text.contains(&says));
        let found = found.unwrap_or_else(|| panic!("{says} is not in\n{}", ended.output));
        assert!(found.contains(" has kept its thread for "), "{found}");
        assert!(ended.status.success());
    }
}

#[test]
fn nonsense_in_the_environment_turns_nothing_on() {
    for nonsense in ["", "0", "-5", "soon", "1e3"] {
        let ended = fresh_process_output(60, &[("SMOL_STALLS", nonsense)], || {
            smol::block_on(smol::spawn(async { thread::sleep(Duration::from_millis(60)) }));
            assert_eq!(format!("{:?}", smol::tasks()), "[]");
        });
        if let Some(ended) = ended {
            assert!(ended.status.success(), "{}", ended.output);
            assert!(!ended.output.contains("has kept"), "{}", ended.output);
        }
    }
}

#[test]
fn the_list_of_tasks_says_where_each_was_spawned_and_what_it_does() {
    fresh_process(60, &[], || {
        let _stalls = stalls();
        let line = line!() + 1;
        let waits = smol::spawn(smol::future::pending::<()>());
        let (sender, stop) = mpsc::channel::<()>();
        let runs = smol::spawn(async move { stop.recv() });
        let is_in = |says: &str, list: &str| list.lines().any(|text| text.contains(says));
        let place = format!("task spawned at {}:{line}:", file!());
        eventually(|| {
            let list = format!("{:#?}", smol::tasks());
            let is_waiting = list
                .lines()
                .any(|text| text.contains(&place) && text.contains("polled 1 times, waiting for"));
            is_waiting && is_in("polled 1 times, running for", &list)
        });
        assert_eq!(format!("{:#?}", smol::tasks()).lines().count(), 4);
        drop((sender, waits));
        let _ = smol::block_on(runs);
        // The future of a task that was cancelled is dropped by a worker.
        eventually(|| format!("{:?}", smol::tasks()) == "[]");
    });
}

#[test]
fn a_report_may_panic_spawn_and_be_replaced_by_another() {
    fresh_process(60, &[("SMOL_THREADS", "2")], || {
        let (sender, first) = mpsc::channel();
        smol::on_stall(LIMIT, move |_| {
            let sender = sender.clone();
            smol::spawn(async move { sender.send(()) }).detach();
            panic!("by the report");
        })
        .unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let task = smol::spawn(async move { stopped.recv().is_ok() });
        first.recv().unwrap();
        let second = stalls();
        second.recv().unwrap();
        stop.send(()).unwrap();
        assert!(smol::block_on(task));
    });
}
