//! A program may end inside of a task, with another executor in between.

mod common;

use common::{fresh_process, fresh_process_output};
use smol::{Executor, LocalExecutor};

thread_local! {
    static OWN: Executor<'static> = const { Executor::new() };
    static LOCAL: LocalExecutor<'static> = const { LocalExecutor::new() };
}

/// The runtime's own thread-locals come before those of the program.
fn first() {
    let (ex, local) = (Executor::new(), LocalExecutor::new());
    ex.spawn(async {}).detach();
    local.spawn(async {}).detach();
    ex.try_tick();
    local.try_tick();
    smol::block_on(ex.run(smol::future::yield_now()));
    smol::block_on(local.run(smol::future::yield_now()));
}

#[test]
fn the_program_may_end_in_a_task_of_an_executor_inside_of_a_task_of_a_threads_own() {
    let ended = fresh_process_output(10, &[], || {
        first();
        OWN.with(|own| {
            let task = own.spawn(async {
                let inner = Executor::new();
                let exits = inner.spawn(async { std::process::exit(7) });
                smol::block_on(inner.run(exits))
            });
            smol::block_on(own.run(task));
        });
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
    }
}

#[test]
fn the_program_may_end_in_a_tick_of_an_executor_inside_of_a_tick_of_a_threads_own() {
    let ended = fresh_process_output(10, &[], || {
        first();
        OWN.with(|own| {
            own.spawn(async {
                let inner = Executor::new();
                inner.spawn(async { std::process::exit(7) }).detach();
                inner.try_tick();
            })
            .detach();
            own.try_tick();
        });
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
    }
}

#[test]
fn the_program_may_end_in_a_local_task_inside_of_a_task_of_a_threads_own() {
    let ended = fresh_process_output(10, &[], || {
        first();
        LOCAL.with(|own| {
            let task = own.spawn(async {
                let inner = LocalExecutor::new();
                let exits = inner.spawn(async { std::process::exit(7) });
                smol::block_on(inner.run(exits))
            });
            smol::block_on(own.run(task));
        });
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
    }
}

/// There are at most a thousand workers; all of them wait for the next in this chain.
#[test]
fn a_chain_of_more_tasks_that_block_for_the_next_one_than_there_may_be_workers_comes_to_its_end() {
    fn chain(left: u32) -> u32 {
        match left {
            0 => 0,
            _ => 1 + smol::block_on(smol::spawn(async move { chain(left - 1) })),
        }
    }
    fresh_process(60, &[], || assert_eq!(chain(1_020), 1_020));
}
