//! An idle program makes no wake-ups and uses no processor time, whatever waits; idle threads of the pool retire.
#![cfg(target_os = "linux")] // measured with /proc

mod common;

use common::{
    Flag, eventually, foreign_block_on, fresh_process, fresh_processes, idle_cost, sleep,
    socket_pair, threads, threads_named,
};
use smol::{
    Async, Executor, Timer, block_on, future, io::AsyncReadExt, spawn, spawn_local, unblock,
};
use std::{
    future::pending,
    os::unix::net::UnixStream,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
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
