//! Attacks on who sleeps, who sits in the poller and who is called.

mod common;

use common::{Flag, foreign_block_on, fresh_processes, wait_in_some_way, within};
use smol::{Timer, future};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SIZES: [&[(&str, &str)]; 3] =
    [&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "8")]];

#[test]
fn threads_in_block_on_that_come_and_go_lose_no_timer_and_no_wake() {
    fresh_processes(60, &SIZES, || {
        let threads: Vec<_> = (0..12)
            .map(|n: u64| {
                thread::spawn(move || {
                    for round in 0..60_u64 {
                        let time = Duration::from_micros((n * 37 + round * 101) % 3000);
                        match (n + round) % 6 {
                            0 => drop(smol::block_on(Timer::after(time))),
                            1 => drop(foreign_block_on(Timer::after(time))),
                            2 => drop(smol::block_on(smol::spawn(Timer::after(time)))),
                            3 => drop(foreign_block_on(smol::spawn(Timer::after(time)))),
                            4 => smol::block_on(async {
                                let one = smol::spawn_local(Timer::after(time));
                                future::zip(one, smol::spawn(async { 1 })).await;
                            }),
                            _ => smol::block_on(smol::unblock(move || thread::sleep(time))),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn blocked_workers_hold_up_neither_timers_nor_tasks() {
    fresh_processes(60, &SIZES, || {
        let stop = Flag::new();
        let blocked: Vec<_> = (0..4)
            .map(|n| {
                let stop = stop.clone();
                smol::spawn(async move {
                    match n % 3 {
                        0 => stop.wait_blocking(),
                        1 => smol::block_on(stop.wait()),
                        _ => foreign_block_on(stop.wait()),
                    }
                })
            })
            .collect();
        for round in 0..20 {
            let waits = smol::spawn(async { _ = Timer::after(Duration::from_millis(1)).await });
            if round % 2 == 0 { smol::block_on(waits) } else { foreign_block_on(waits) }
        }
        stop.set();
        smol::block_on(async {
            for task in blocked {
                task.await;
            }
        });
    });
}

#[test]
fn the_process_ends_while_everything_is_in_motion() {
    fresh_processes(30, &SIZES, || {
        let stop = Arc::new(AtomicBool::new(false));
        for n in 0..8_u64 {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    smol::block_on(async {
                        smol::spawn(Timer::after(Duration::from_micros(n * 50))).await;
                    });
                    foreign_block_on(Timer::after(Duration::from_micros(n * 50)));
                }
            });
        }
        for _ in 0..100 {
            smol::spawn(async {
                loop {
                    future::yield_now().await;
                    Timer::after(Duration::from_micros(300)).await;
                }
            })
            .detach();
        }
        thread::sleep(Duration::from_millis(50));
    });
}

#[test]
fn without_threads_block_ons_that_come_and_go_run_everything() {
    let none: &[&[(&str, &str)]] = &[
        &[("RUST_MIN_STACK", "99999999999999"), ("SMOL_THREADS", "1")],
        &[("RUST_MIN_STACK", "99999999999999"), ("SMOL_THREADS", "8")],
    ];
    fresh_processes(60, none, || {
        let threads: Vec<_> = (0..6)
            .map(|n: u64| {
                let thread = thread::Builder::new().stack_size(256 << 10);
                let body = move || {
                    for round in 0..40_u64 {
                        wait_in_some_way(n, round);
                    }
                };
                thread.spawn(body).unwrap()
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn one_who_sleeps_is_called_when_the_thread_in_the_seat_ends() {
    within(60, || {
        for round in 0..200_u64 {
            let short = thread::spawn(move || {
                smol::block_on(Timer::after(Duration::from_micros(round * 10)))
            });
            let long = thread::spawn(move || {
                smol::block_on(Timer::after(Duration::from_micros(round * 10 + 500)))
            });
            short.join().unwrap();
            long.join().unwrap();
        }
    });
}

#[test]
fn a_task_that_is_woken_from_threads_that_end_at_once_is_never_forgotten() {
    fresh_processes(60, &SIZES, || {
        for _ in 0..300 {
            let flag = Flag::new();
            let task = smol::spawn({
                let flag = flag.clone();
                async move { flag.wait().await }
            });
            thread::spawn(move || flag.set());
            smol::block_on(task);
        }
    });
}
