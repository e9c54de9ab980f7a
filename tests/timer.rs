//! Timers: never early, never forgotten, never in anybody's way, gone at once when dropped;
//! whatever is too far away means "never".

mod common;

use common::{
    Flag, OnDrop, counting_waker, foreign_block_on, fresh_process, hook_waker, live_bytes, within,
};
use smol::{
    Async, TimedOut, Timer, block_on, future, prelude::*, spawn, spawn_local, stream, timeout,
    timeout_at,
};
use std::{
    alloc::System,
    cell::Cell,
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

fn poll_once_with(timer: &mut Timer, waker: &Waker) -> Poll<Instant> {
    Pin::new(timer).poll(&mut Context::from_waker(waker))
}

/// Durations that no clock will ever reach the end of, and some that it would only reach in
/// centuries.
fn huge_durations() -> Vec<Duration> {
    vec![
        Duration::MAX,
        Duration::from_secs(u64::MAX),
        Duration::from_secs(u64::MAX / 2 + 1),
        Duration::from_secs(i64::MAX as u64),
        Duration::from_secs(u64::from(u32::MAX)),
        Duration::from_millis(u64::MAX),
        Duration::from_micros(u64::MAX),
        Duration::from_nanos(u64::MAX),
        Duration::from_nanos(i64::MAX as u64),
    ]
}

/// The last instant this platform can express, or nearly so.
fn last_instant() -> Instant {
    let mut instant = Instant::now();
    let mut step = Duration::from_secs(u64::MAX);
    while step > Duration::from_nanos(1) {
        match instant.checked_add(step) {
            Some(later) => instant = later,
            None => step /= 2,
        }
    }
    instant
}

// ---------- when timers fire ----------

#[test]
fn a_timer_never_fires_early() {
    within(30, || {
        let body = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            move || async move {
                for round in 0..300 {
                    let duration = Duration::from_nanos(random.u64(0..3_000_000));
                    let deadline = Instant::now() + duration;
                    let fired = if round % 2 == 0 {
                        Timer::at(deadline).await
                    } else {
                        Timer::after(duration).await
                    };
                    let now = Instant::now();
                    assert!(now >= deadline, "{:?} early", deadline - now);
                    assert!(fired >= deadline, "it says so itself: {:?} early", deadline - fired);
                    assert!(fired <= now, "it claims to have fired in the future");
                }
            }
        };
        thread::scope(|s| {
            s.spawn(|| block_on(body(1)()));
            s.spawn(|| block_on(spawn(body(2)())));
            s.spawn(|| foreign_block_on(body(3)()));
            s.spawn(|| foreign_block_on(spawn(body(4)())));
        });
    });
}

#[test]
fn no_tick_of_an_interval_comes_early() {
    within(30, || {
        block_on(async {
            let start = Instant::now();
            let mut interval = Timer::interval(2 * MS);
            for tick in 1..=50 {
                interval.next().await.unwrap();
                assert!(start.elapsed() >= tick * 2 * MS, "tick {tick}");
            }
            let start = Instant::now() + 5 * MS;
            let mut interval = Timer::interval_at(start, 2 * MS);
            for tick in 0..50 {
                interval.next().await.unwrap();
                assert!(Instant::now() >= start + tick * 2 * MS, "tick {tick}");
            }
        });
    });
}

#[test]
fn very_short_timers_fire() {
    within(30, || {
        for duration in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_micros(1),
            Duration::from_micros(999),
        ] {
            block_on(async {
                for _ in 0..200 {
                    Timer::after(duration).await;
                }
            });
            foreign_block_on(async {
                for _ in 0..200 {
                    Timer::after(duration).await;
                }
            });
        }
    });
}

#[test]
fn a_deadline_that_is_now_or_in_the_past_has_come() {
    within(10, || {
        block_on(async {
            let now = Instant::now();
            let mut deadlines = vec![now];
            deadlines.extend(
                [1, 1_000, 1_000_000_000]
                    .into_iter()
                    .filter_map(|n| now.checked_sub(Duration::from_nanos(n))),
            );
            deadlines.extend(now.checked_sub(Duration::from_secs(60)));
            for deadline in deadlines {
                Timer::at(deadline).await;
                Timer::interval_at(deadline, HOUR).next().await.unwrap();
                let mut timer = Timer::never();
                timer.set_at(deadline);
                timer.await;
            }
        });
    });
}

#[test]
fn ten_thousand_timers_for_one_instant_all_fire() {
    within(30, || {
        block_on(async {
            let deadline = Instant::now() + 20 * MS;
            let tasks: Vec<_> = (0..10_000).map(|_| spawn(Timer::at(deadline))).collect();
            for task in tasks {
                task.await;
                assert!(Instant::now() >= deadline);
            }
        });
    });
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines() {
    // Two threads may have taken turns in the poller, and the first be held up before it wakes: such
    // a round says nothing, but most are as they should be.
    fresh_process(20, &[], || assert!((0..10).any(|_| block_on(forty_timers_fire_in_order()))));
}

async fn forty_timers_fire_in_order() -> bool {
    let order = Arc::new(Mutex::new(Vec::new()));
    let now = Instant::now();
    let mut timers: Vec<_> = (0..40).map(|i| (i, Timer::at(now + 30 * MS + i * MS / 2))).collect();
    fastrand::shuffle(&mut timers);
    for (i, timer) in &mut timers {
        let (i, order, woken) = (*i, order.clone(), AtomicBool::new(false));
        let waker = hook_waker(move || {
            // Also called when the waker is dropped.
            if !woken.swap(true, Ordering::SeqCst) {
                order.lock().unwrap().push(i);
            }
        });
        if poll_once_with(timer, &waker).is_ready() {
            return false; // so slow a machine that it fired before
        }
    }
    // By the time the last one is ready, all the others have been woken.
    Timer::at(now + 60 * MS).await;
    let order = order.lock().unwrap();
    order.len() == 40 && order.is_sorted()
}

#[test]
fn a_timer_fires_under_a_foreign_block_on() {
    within(10, || {
        foreign_block_on(Timer::after(5 * MS));
        foreign_block_on(async {
            let mut interval = Timer::interval(MS);
            for _ in 0..5 {
                interval.next().await.unwrap();
            }
            timeout(5 * MS, future::pending::<()>()).await.unwrap_err();
        });
    });
}

/// <https://github.com/tokio-rs/tokio/issues/3190>
#[test]
fn a_new_earliest_timer_interrupts_a_thread_that_sleeps_until_a_later_one() {
    within(30, || {
        let (polled, stop) = (Flag::new(), Flag::new());
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async {
                    let mut far = Timer::after(HOUR);
                    assert!(future::poll_once(&mut far).await.is_none());
                    polled.set();
                    async {
                        far.await;
                    }
                    .or(stop.wait())
                    .await;
                });
            });
            polled.wait_blocking();
            // From threads outside of the runtime, inside of it, and from tasks.
            thread::scope(|s| {
                s.spawn(|| {
                    for _ in 0..200 {
                        foreign_block_on(Timer::after(MS));
                    }
                });
                s.spawn(|| {
                    for _ in 0..200 {
                        block_on(Timer::after(MS));
                    }
                });
                s.spawn(|| {
                    for _ in 0..200 {
                        foreign_block_on(spawn(Timer::after(MS)));
                    }
                });
                s.spawn(|| {
                    // Ever earlier ones.
                    for _ in 0..20 {
                        let mut timers: Vec<_> =
                            (1..=5).rev().map(|i| Timer::after(i * MS)).collect();
                        foreign_block_on(async {
                            let mut fired = false;
                            for timer in &mut timers {
                                fired = future::poll_once(timer).await.is_some();
                            }
                            if !fired {
                                timers.pop().unwrap().await;
                            }
                        });
                    }
                });
            });
            stop.set();
        });
    });
}

#[test]
fn timers_made_set_and_dropped_by_eight_threads_at_once_all_fire() {
    within(60, || {
        thread::scope(|s| {
            for seed in 0..8 {
                s.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    let work = async {
                        for _ in 0..100 {
                            let mut timers: Vec<_> = (0..4)
                                .map(|_| Timer::after(Duration::from_micros(random.u64(0..2_000))))
                                .collect();
                            for timer in &mut timers {
                                let _ = future::poll_once(timer).await;
                            }
                            let deadline =
                                Instant::now() + Duration::from_micros(random.u64(0..2_000));
                            timers[0].set_at(deadline);
                            timers[1].set_after(HOUR);
                            timers.swap_remove(1 + random.usize(0..3));
                            timers.swap_remove(0).await;
                            assert!(Instant::now() >= deadline);
                        }
                    };
                    if seed % 2 == 0 { block_on(work) } else { foreign_block_on(work) }
                });
            }
        });
    });
}

// ---------- setting anew ----------

#[test]
fn a_timer_can_be_set_earlier_later_and_to_the_past() {
    within(10, || {
        block_on(async {
            let mut timer = Timer::after(HOUR);
            assert!(future::poll_once(&mut timer).await.is_none());
            timer.set_after(MS);
            (&mut timer).await; // earlier

            let start = Instant::now();
            timer.set_after(5 * MS); // after it fired
            let _ = future::poll_once(&mut timer).await;
            timer.set_after(30 * MS); // later
            (&mut timer).await;
            assert!(start.elapsed() >= 30 * MS);

            timer.set_at(Instant::now() + HOUR);
            assert!(future::poll_once(&mut timer).await.is_none());
            timer.set_at(start); // the past
            assert!(future::poll_once(&mut timer).await.is_some());

            timer.set_after(HOUR);
            assert!(future::poll_once(&mut timer).await.is_none());
            timer.set_interval(2 * MS);
            timer.next().await.unwrap();
            timer.next().await.unwrap();
            timer.set_interval_at(start, HOUR);
            timer.next().await.unwrap();
            assert!(future::poll_once(timer.next()).await.is_none());
            timer.set_after(MS); // no interval any more
            (&mut timer).await;
        });
    });
}

#[test]
fn whoever_waits_for_a_timer_is_woken_when_another_thread_sets_it_earlier() {
    within(10, || {
        let timer = Arc::new(Mutex::new(Timer::after(HOUR)));
        let polled = Flag::new();
        let waiter = spawn({
            let (timer, polled) = (timer.clone(), polled.clone());
            poll_fn(move |cx| {
                let poll = Pin::new(&mut *timer.lock().unwrap()).poll(cx);
                polled.set();
                poll
            })
        });
        polled.wait_blocking();
        timer.lock().unwrap().set_after(MS);
        foreign_block_on(waiter);
    });
}

#[test]
fn a_timer_that_moves_to_another_task_wakes_that_task() {
    within(10, || {
        let (first, first_wakes) = counting_waker();
        for _ in 0..5 {
            let mut timer = Timer::after(20 * MS);
            if poll_once_with(&mut timer, &first).is_ready() {
                continue; // so slow a machine
            }
            block_on(async {
                if future::poll_once(&mut timer).await.is_none() {
                    spawn(timer).await;
                }
            });
        }
        assert!(first_wakes.count() <= 5);
    });
}

#[test]
fn a_timer_wakes_once() {
    within(10, || {
        let (waker, wakes) = counting_waker();
        let mut timer = Timer::after(20 * MS);
        for _ in 0..2 {
            if poll_once_with(&mut timer, &waker).is_ready() {
                return; // so slow a machine
            }
        }
        block_on(async {
            while wakes.count() == 0 {
                Timer::after(MS).await;
            }
        });
        assert!(poll_once_with(&mut timer, &waker).is_ready());
        block_on(Timer::after(5 * MS));
        assert_eq!(wakes.count(), 1);
    });
}

#[test]
fn a_dropped_or_postponed_timer_does_not_wake() {
    within(10, || {
        let (waker, wakes) = counting_waker();
        let mut timers: Vec<_> = (0..3).map(|_| Timer::after(20 * MS)).collect();
        let mut waiting = 0;
        for timer in &mut timers {
            waiting += usize::from(poll_once_with(timer, &waker).is_pending());
        }
        drop(timers.pop());
        timers[0].set_after(HOUR);
        timers[1].set_after(Duration::MAX);
        if waiting < 3 || wakes.count() > 0 {
            return; // so slow a machine that they fired before
        }
        block_on(Timer::after(30 * MS));
        assert_eq!(wakes.count(), 0);
    });
}

#[test]
fn will_fire_tells_whether_there_is_anything_to_wait_for() {
    within(10, || {
        block_on(async {
            assert!(!Timer::never().will_fire());
            assert!(!Timer::after(Duration::MAX).will_fire());
            assert!(Timer::after(HOUR).will_fire());
            assert!(Timer::at(Instant::now()).will_fire());
            let mut timer = Timer::after(MS);
            (&mut timer).await;
            assert!(!timer.will_fire(), "it has fired");
            timer.set_after(MS);
            assert!(timer.will_fire(), "it was set anew");
            let mut interval = Timer::interval(MS);
            for _ in 0..3 {
                interval.next().await.unwrap();
                assert!(interval.will_fire());
            }
            interval.set_after(Duration::MAX);
            assert!(!interval.will_fire());
        });
    });
}

#[test]
fn never_does_not_come() {
    within(10, || {
        block_on(async {
            let mut never = Timer::never();
            assert!(future::poll_once(&mut never).await.is_none());
            Timer::after(5 * MS).await;
            assert!(future::poll_once(&mut never).await.is_none());
            assert!(future::poll_once(never.next()).await.is_none());
            never.set_after(MS);
            never.await;
        });
    });
}

// ---------- huge durations ----------

#[test]
fn huge_durations_mean_never() {
    within(30, || {
        block_on(async {
            for huge in huge_durations() {
                let mut anew =
                    [Timer::after(MS), Timer::after(MS), Timer::after(MS), Timer::after(MS)];
                anew[0].set_after(huge);
                anew[1].set_interval(huge);
                anew[2].set_at(Instant::now().checked_add(huge).unwrap_or_else(last_instant));
                anew[3].set_interval_at(last_instant(), huge);
                let timers = [
                    Timer::after(huge),
                    Timer::interval(huge),
                    Timer::interval_at(last_instant(), huge),
                    Timer::interval_at(last_instant(), MS),
                    Timer::at(Instant::now().checked_add(huge).unwrap_or_else(last_instant)),
                    Timer::at(last_instant()),
                ];
                let mut timers: Vec<_> = timers.into_iter().chain(anew).collect();
                for timer in &mut timers {
                    assert!(future::poll_once(timer).await.is_none(), "{huge:?}");
                }
                // The others are not disturbed.
                Timer::after(2 * MS).await;
                for timer in &mut timers {
                    assert!(future::poll_once(timer).await.is_none(), "{huge:?}");
                }
            }
        });
    });
}

#[test]
fn an_interval_with_a_huge_period_ticks_once_if_its_first_tick_is_near() {
    within(10, || {
        block_on(async {
            for huge in huge_durations() {
                let mut interval = Timer::interval_at(Instant::now(), huge);
                interval.next().await.unwrap();
                assert!(future::poll_once(interval.next()).await.is_none());
            }
        });
    });
}

#[test]
fn a_huge_timeout_lets_its_future_finish() {
    within(10, || {
        block_on(async {
            for huge in huge_durations() {
                assert_eq!(timeout(huge, async { 1 }).await, Ok(1));
                let slow = async {
                    Timer::after(MS).await;
                    2
                };
                assert_eq!(timeout(huge, slow).await, Ok(2));
                let mut waiting = pin!(timeout(huge, future::pending::<()>()));
                assert!(future::poll_once(waiting.as_mut()).await.is_none());
            }
        });
    });
}

// ---------- intervals ----------

#[test]
fn an_interval_is_a_stream() {
    within(10, || {
        block_on(async {
            let ticks: Vec<_> = Timer::interval(MS).take(5).collect().await;
            assert!(ticks.is_sorted());
            assert_eq!(ticks.len(), 5);
            // Combinators of streams apply.
            let both =
                stream::or(Timer::interval(MS).map(|_| 'a'), Timer::interval(MS).map(|_| 'b'));
            let both: String = both.take(10).collect().await;
            assert!(both.contains('a'));
        });
    });
}

#[test]
fn a_timer_that_fires_once_is_a_stream_of_one_item() {
    within(10, || {
        block_on(async {
            let mut timer = Timer::after(MS);
            timer.next().await.unwrap();
            // Whether the stream ends or stays silent: there is no second item.
            assert!(!matches!(future::poll_once(timer.next()).await, Some(Some(_))));
        });
    });
}

#[test]
fn an_interval_that_was_held_up_ticks_once_and_keeps_its_phase() {
    within(60, || {
        block_on(async {
            let period = 20 * MS;
            let start = Instant::now();
            let mut interval = Timer::interval_at(start, period);
            interval.next().await.unwrap();
            let mut best = Duration::MAX;
            for _ in 0..8 {
                thread::sleep(period * 7 / 2); // this is the hold-up
                let held_up = Instant::now();
                interval.next().await.unwrap();
                // A burst would come before the next point of the raster.
                let elapsed = (held_up - start).as_nanos();
                let next = start + period * u32::try_from(elapsed / period.as_nanos() + 1).unwrap();
                interval.next().await.unwrap();
                let now = Instant::now();
                assert!(now >= next, "a second tick {:?} before its time", next - now);
                best = best.min(now - next);
            }
            // A raster shifted to the late tick would be late by half a period each time.
            assert!(best < period / 3, "never nearer to the raster than {best:?}");
        });
    });
}

/// More periods are missed than a 32-bit number counts.
#[test]
fn an_interval_of_a_nanosecond_survives_a_long_hold_up() {
    within(10, || {
        block_on(async {
            let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(30)) else {
                return;
            };
            let mut interval = Timer::interval_at(long_ago, Duration::from_nanos(1));
            for _ in 0..5 {
                interval.next().await.unwrap();
                assert!(interval.will_fire());
            }
        });
    });
}

#[test]
fn an_interval_of_zero_does_not_starve_others() {
    within(20, || {
        let ticks = Cell::new(0u32);
        // In the same task, in the same thread, and next to a foreign one.
        block_on(async {
            let forever = async {
                let mut zero = Timer::interval(Duration::ZERO);
                loop {
                    zero.next().await;
                    ticks.set(ticks.get() + 1);
                }
            };
            let other = async {
                for _ in 0..3 {
                    Timer::after(MS).await;
                }
            };
            forever.or(other).await;
        });
        assert!(ticks.get() > 0);
        block_on(async {
            let _forever = spawn_local(async {
                let mut zero = Timer::interval_at(Instant::now(), Duration::ZERO);
                loop {
                    zero.next().await;
                }
            });
            let brother = spawn_local(async {
                for _ in 0..100 {
                    future::yield_now().await;
                }
            });
            brother.await;
            for _ in 0..3 {
                Timer::after(MS).await;
            }
        });
        foreign_block_on(async {
            let forever = async {
                let mut zero = Timer::interval(Duration::ZERO);
                loop {
                    zero.next().await;
                }
            };
            forever.or(async { _ = Timer::after(MS).await }).await;
        });
    });
}

#[test]
fn an_interval_of_zero_on_the_only_worker_does_not_starve_others() {
    fresh_process(20, &[("SMOL_THREADS", "1")], || {
        block_on(async {
            let _forever = spawn(async {
                let mut zero = Timer::interval(Duration::ZERO);
                loop {
                    zero.next().await;
                }
            });
            for _ in 0..3 {
                spawn(Timer::after(MS)).await;
                spawn(async {}).await;
            }
        });
    });
}

// ---------- timeout ----------

#[test]
fn timeout_gives_the_result_in_time_or_an_error() {
    within(10, || {
        block_on(async {
            assert_eq!(timeout(HOUR, async { 7 }).await, Ok(7));
            assert_eq!(
                timeout(Duration::ZERO, async { 7 }).await,
                Ok(7),
                "what is ready is not late"
            );
            assert_eq!(timeout(MS, future::pending::<()>()).await, Err(TimedOut));
            assert_eq!(timeout(Duration::ZERO, future::pending::<()>()).await, Err(TimedOut));
            let start = Instant::now();
            timeout(10 * MS, future::pending::<()>()).await.unwrap_err();
            assert!(start.elapsed() >= 10 * MS);
        });
    });
}

#[test]
fn timeout_drops_the_late_future_before_it_answers() {
    within(10, || {
        block_on(async {
            let dropped = Cell::new(false);
            let guard = OnDrop(|| dropped.set(true));
            let late = async move {
                let _guard = guard;
                future::pending::<()>().await;
            };
            timeout(MS, late).await.unwrap_err();
            assert!(dropped.get());
        });
    });
}

#[test]
fn timeout_ends_a_future_that_is_always_ready_to_go_on() {
    within(10, || {
        let busy = || async {
            loop {
                future::yield_now().await;
            }
        };
        block_on(timeout(5 * MS, busy())).unwrap_err();
        foreign_block_on(timeout(5 * MS, busy())).unwrap_err();
        block_on(spawn(timeout(5 * MS, busy()))).unwrap_err();
    });
}

#[test]
fn timed_out_is_an_error_like_any_other() {
    let error: io::Error = TimedOut.into();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let boxed: Box<dyn std::error::Error + Send + Sync> = TimedOut.into();
    assert!(boxed.downcast_ref::<TimedOut>().is_some());
    let copy = TimedOut;
    assert_eq!(copy, TimedOut);
    assert!(!copy.to_string().is_empty());
    assert!(!format!("{copy:?} {:?}", Timer::after(HOUR)).is_empty());
    // `?` turns it into an io::Error.
    fn in_io() -> io::Result<()> {
        within(10, || Ok(block_on(timeout(Duration::ZERO, future::pending()))?))
    }
    assert_eq!(in_io().unwrap_err().kind(), io::ErrorKind::TimedOut);
}

// ---------- what timers cost ----------

#[test]
fn a_dropped_or_set_timer_gives_up_its_waker_at_once() {
    within(10, || {
        let (waker, wakes) = counting_waker();
        let mut timers: Vec<_> = (0..100).map(|_| Timer::after(HOUR)).collect();
        timers.iter_mut().for_each(|timer| assert!(poll_once_with(timer, &waker).is_pending()));
        drop(waker);
        assert!(Arc::strong_count(&wakes) > 1);
        for timer in &mut timers[..50] {
            timer.set_after(Duration::MAX);
            drop(std::mem::replace(timer, Timer::never()));
        }
        drop(timers);
        assert_eq!(Arc::strong_count(&wakes), 1);
    });
}

#[test]
fn dropped_and_reset_timers_give_their_memory_back_at_once() {
    fresh_process(60, &[], || {
        let churn = || {
            let (waker, _) = counting_waker();
            let mut reused = Timer::after(HOUR);
            let step = |reused: &mut Timer| {
                let mut timer = Timer::after(HOUR);
                assert!(poll_once_with(&mut timer, &waker).is_pending());
                reused.set_after(2 * HOUR);
                assert!(poll_once_with(reused, &waker).is_pending());
            };
            (0..1_000).for_each(|_| step(&mut reused));
            let before = live_bytes();
            let mut most = 0;
            for _ in 0..200 {
                (0..1_000).for_each(|_| step(&mut reused));
                most = most.max(live_bytes() - before);
            }
            assert!(most < 256 * 1024, "{most} bytes are still held");
        };
        churn(); // nobody drives the reactor
        let (polled, stop) = (Flag::new(), Flag::new());
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async {
                    let mut far = Timer::after(HOUR);
                    assert!(future::poll_once(&mut far).await.is_none());
                    polled.set();
                    stop.wait().await;
                });
            });
            polled.wait_blocking();
            churn(); // somebody sleeps in it
            stop.set();
        });
    });
}

#[test]
fn timers_that_fired_give_their_memory_back() {
    fresh_process(60, &[], || {
        let wave = || {
            block_on(async {
                let deadline = Instant::now() + 5 * MS;
                let tasks: Vec<_> = (0..5_000).map(|_| spawn_local(Timer::at(deadline))).collect();
                for task in tasks {
                    task.await;
                }
            });
        };
        wave();
        wave();
        let before = live_bytes();
        (0..10).for_each(|_| wave());
        let grown = live_bytes() - before;
        assert!(grown < 512 * 1024, "{grown} bytes are still held");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_far_timers_cost_nothing_while_they_wait() {
    fresh_process(30, &[], || {
        let (polled, stop) = (Flag::new(), Flag::new());
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async {
                    let mut tasks: Vec<_> =
                        (0..5_000).map(|_| spawn_local(Timer::after(HOUR))).collect();
                    tasks.extend((0..5_000).map(|_| spawn(Timer::after(HOUR))));
                    for task in &mut tasks {
                        assert!(future::poll_once(task).await.is_none());
                    }
                    spawn_local(async {}).await;
                    polled.set();
                    stop.wait().await;
                });
            });
            polled.wait_blocking();
            let (cpu, switches) = common::idle_cost(Duration::from_secs(1));
            assert!(switches <= 2, "{switches} wake-ups in a second");
            assert!(cpu < 50 * MS, "{cpu:?} of processor time in a second");
            stop.set();
        });
    });
}

// ---------- code of users in the worst of places ----------

/// <https://github.com/tokio-rs/tokio/issues/4129>
#[test]
fn a_waker_may_use_timers_and_handles_when_it_is_woken_or_dropped() {
    within(20, || {
        let calls = Arc::new(AtomicUsize::new(0));
        let hook = {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
                let mut timer = Timer::after(HOUR);
                assert!(poll_once_with(&mut timer, Waker::noop()).is_pending());
                timer.set_after(2 * HOUR);
                drop(timer);
                spawn(async {}).detach();
                #[cfg(unix)]
                {
                    let (a, _b) = Async::<std::os::unix::net::UnixStream>::pair().unwrap();
                    assert!(a.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending());
                }
                #[cfg(not(unix))]
                drop(Async::<std::net::UdpSocket>::bind(([127, 0, 0, 1], 0)));
            }
        };
        let poll = |timer: &mut Timer| poll_once_with(timer, &hook_waker(hook.clone()));
        // Replaced by another waker, set anew, dropped: the old waker is dropped each time.
        let mut timer = Timer::after(HOUR);
        assert!(poll(&mut timer).is_pending());
        assert!(poll(&mut timer).is_pending());
        timer.set_after(2 * HOUR);
        assert!(poll(&mut timer).is_pending());
        timer.set_after(Duration::MAX);
        assert!(poll(&mut timer).is_pending());
        drop(timer);
        let after_drops = calls.load(Ordering::SeqCst);
        assert!(after_drops >= 4, "only {after_drops} of the wakers were dropped");
        // Woken by the reactor.
        let mut timer = Timer::after(MS);
        let pending = poll(&mut timer).is_pending();
        block_on(Timer::after(5 * MS));
        assert!(!pending || calls.load(Ordering::SeqCst) > after_drops);
        foreign_block_on(timer);
    });
}

#[test]
fn a_waker_that_panics_does_not_stop_the_clock() {
    fresh_process(20, &[], || {
        for _ in 0..5 {
            let armed = Arc::new(AtomicBool::new(true));
            let bomb = hook_waker(move || {
                if armed.swap(false, Ordering::SeqCst) {
                    panic!("the waker of somebody else");
                }
            });
            let (waker, wakes) = counting_waker();
            let deadline = Instant::now() + 2 * MS;
            let mut timers: Vec<_> = (0..10).map(|_| Timer::at(deadline)).collect();
            let mut pending = 0;
            for (i, timer) in timers.iter_mut().enumerate() {
                let waits = poll_once_with(timer, if i == 4 { &bomb } else { &waker }).is_pending();
                pending += usize::from(waits && i != 4);
            }
            // The panic may come out here, or be swallowed; in any case the others are woken, and
            // time goes on.
            let _ = catch_unwind(|| block_on(Timer::after(10 * MS)));
            common::eventually(|| wakes.count() >= pending);
            block_on(Timer::after(MS));
            foreign_block_on(Timer::after(MS));
            block_on(spawn(Timer::after(MS)));
            let _ = catch_unwind(AssertUnwindSafe(|| drop(bomb)));
        }
    });
}

/// One poll may trust the clock of the moment when the timer was set; no other.
#[test]
fn a_timer_that_is_due_is_ready_although_nobody_has_asked_the_kernel() {
    fresh_process(20, &[], || {
        block_on(async {
            let pause = Duration::from_millis(2);
            let mut timer = Timer::after(pause);
            thread::sleep(2 * pause);
            assert!(future::poll_once(&mut timer).await.is_some());

            let mut timer = Timer::after(10 * pause);
            assert!(future::poll_once(&mut timer).await.is_none());
            timer.set_after(pause);
            let _ = future::poll_once(&mut timer).await;
            thread::sleep(2 * pause);
            assert!(future::poll_once(&mut timer).await.is_some());
        });
    });
}

// ---------- whoever waits goes on waiting ----------

type Set = fn(&mut Timer);

/// The ways to set a timer so that it does not fire, with all ways to set it so that it does.
fn ways_to_and_fro() -> impl Iterator<Item = (Set, Set)> {
    let to: [Set; 3] = [
        |timer| timer.set_after(Duration::MAX),
        |timer| timer.set_interval(Duration::MAX),
        |timer| {
            timer.set_after(Duration::MAX);
            timer.set_after(Duration::MAX);
        },
    ];
    let fro: [Set; 5] = [
        |timer| timer.set_after(20 * MS),
        |timer| timer.set_at(Instant::now() + 20 * MS),
        |timer| timer.set_interval(20 * MS),
        |timer| timer.set_interval_at(Instant::now() + 20 * MS, HOUR),
        |timer| timer.set_at(Instant::now()),
    ];
    to.into_iter().flat_map(move |to| fro.map(|fro| (to, fro)))
}

#[test]
fn whoever_waits_for_a_timer_set_to_never_is_woken_when_it_is_set_again() {
    within(30, || {
        for (to, fro) in ways_to_and_fro() {
            for mut timer in [Timer::after(HOUR), Timer::interval(HOUR), Timer::never()] {
                let (waker, wakes) = counting_waker();
                assert!(poll_once_with(&mut timer, &waker).is_pending());
                drop(waker);
                to(&mut timer);
                assert_eq!(wakes.count(), 0);
                fro(&mut timer);
                common::eventually(|| wakes.count() > 0);
                drop(timer);
                assert_eq!(Arc::strong_count(&wakes), 1);
            }
        }
    });
}

/// The same with tasks: the timer is shared, somebody else sets it.
#[test]
fn a_shared_timer_can_be_stopped_and_started_under_its_waiters() {
    within(30, || {
        for (to, fro) in ways_to_and_fro() {
            for first in [Timer::after(HOUR), Timer::never()] {
                let (timer, polled) = (Arc::new(Mutex::new(first)), Flag::new());
                let wait = {
                    let (timer, polled) = (timer.clone(), polled.clone());
                    poll_fn(move |cx| {
                        let poll = Pin::new(&mut *timer.lock().unwrap()).poll(cx);
                        polled.set();
                        poll
                    })
                };
                let set = || {
                    polled.wait_blocking();
                    to(&mut timer.lock().unwrap());
                    fro(&mut timer.lock().unwrap());
                };
                // On a worker, on another thread's `block_on`, under a foreign one.
                match fastrand::u8(0..3) {
                    0 => {
                        let task = spawn(wait);
                        set();
                        block_on(task);
                    }
                    1 => thread::scope(|s| {
                        s.spawn(|| block_on(wait));
                        set();
                    }),
                    _ => thread::scope(|s| {
                        s.spawn(|| foreign_block_on(wait));
                        set();
                    }),
                }
            }
        }
    });
}

/// Nothing is registered while a timer is on never: setting it is where waiting begins.
#[test]
fn a_timer_that_fired_is_waited_for_again_once_it_is_set() {
    fresh_process(20, &[], || {
        let (waker, wakes) = counting_waker();
        let mut timer = Timer::after(MS);
        foreign_block_on(&mut timer);
        assert!(poll_once_with(&mut timer, &waker).is_pending());
        assert!(poll_once_with(&mut timer, &waker).is_pending());
        timer.set_after(MS);
        common::eventually(|| wakes.count() == 1);
        // Another waiter takes the place of the first.
        let mut never = Timer::never();
        let (other, others_wakes) = counting_waker();
        assert!(poll_once_with(&mut never, &waker).is_pending());
        assert!(poll_once_with(&mut never, &other).is_pending());
        never.set_after(MS);
        common::eventually(|| others_wakes.count() == 1);
        assert_eq!(wakes.count(), 1);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn waiting_for_never_costs_no_thread_and_no_wake_up() {
    fresh_process(20, &[], || {
        let before = (common::threads(), common::open_fds());
        let mut never = Timer::never();
        assert!(poll_once_with(&mut never, &counting_waker().0).is_pending());
        assert_eq!((common::threads(), common::open_fds()), before);
    });
}

// ---------- timeout counts from the call ----------

#[test]
fn a_timeout_counts_from_the_call_and_not_from_the_first_poll() {
    within(20, || {
        block_on(async {
            let late = timeout(20 * MS, future::pending::<()>());
            thread::sleep(30 * MS);
            // Its time is over before it is polled for the first time.
            assert_eq!(future::poll_once(late).await, Some(Err(TimedOut)));
            let ready = timeout(MS, async { 7 });
            thread::sleep(2 * MS);
            assert_eq!(ready.await, Ok(7), "what is ready is not late");
            // The later of two has more time, whichever is polled first.
            let (first, second) = (timeout(MS, future::pending::<()>()), timeout(HOUR, async {}));
            assert_eq!((second.await, first.await), (Ok(()), Err(TimedOut)));
        });
    });
}

#[test]
fn a_timeout_that_is_never_polled_drops_its_future() {
    within(10, || {
        let dropped = Flag::new();
        let guard = common::set_on_drop(&dropped);
        let unpolled = timeout(HOUR, async move { drop(guard) });
        assert!(!dropped.is_set());
        drop(unpolled);
        assert!(dropped.is_set());
    });
}

#[test]
fn timeout_at_ends_at_a_moment() {
    within(10, || {
        block_on(async {
            let now = Instant::now();
            assert_eq!(timeout_at(now + HOUR, async { 7 }).await, Ok(7));
            assert_eq!(timeout_at(now, async { 7 }).await, Ok(7), "what is ready is not late");
            assert_eq!(timeout_at(now, future::pending::<()>()).await, Err(TimedOut));
            timeout_at(now + 10 * MS, future::pending::<()>()).await.unwrap_err();
            assert!(now.elapsed() >= 10 * MS);
            // One deadline for a whole sequence.
            let deadline = Instant::now() + 20 * MS;
            let mut steps = 0;
            while timeout_at(deadline, Timer::after(3 * MS)).await.is_ok() {
                steps += 1;
            }
            assert!(steps < 20, "{steps} steps of 3 ms in 20 ms");
            let far = timeout_at(last_instant(), future::pending::<()>());
            assert!(future::poll_once(far).await.is_none());
        });
    });
}

// ---------- the order of equal deadlines, and a clock that can be set ----------

/// Who was woken, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<usize>>>);

impl Log {
    fn waker(&self, number: usize) -> Waker {
        struct Note(Log, usize);
        impl Wake for Note {
            fn wake(self: Arc<Self>) {
                self.0.0.lock().unwrap().push(self.1);
            }
        }
        Waker::from(Arc::new(Note(self.clone(), number)))
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Polls once; or twice, if the budget of operations was spent and the timer is woken at once.
    fn poll(&self, timer: &mut Timer, waker: &Waker) -> Poll<Instant> {
        let before = self.len();
        let poll = poll_once_with(timer, waker);
        if self.len() == before {
            return poll;
        }
        self.0.lock().unwrap().truncate(before);
        poll_once_with(timer, waker)
    }

    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Far enough away to come through several levels of the wheel.
#[test]
fn timers_of_one_deadline_fire_in_the_order_they_were_made() {
    within(60, || {
        'distances: for distance in [60, 61, 64, 90, 91, 130] {
            let log = Log::default();
            let deadline = Instant::now() + distance * MS;
            let mut timers = Vec::new();
            for i in 0..1_000 {
                let mut timer = Timer::at(deadline);
                let waits = log.poll(&mut timer, &log.waker(i)).is_pending();
                timers.push(timer);
                if !waits || log.len() > 0 {
                    continue 'distances; // so slow a machine
                }
                // Some of them have been moved down before others are made.
                if i % 100 == 0 && distance > 100 {
                    block_on(Timer::after(7 * MS));
                }
            }
            // Somebody asks the kernel again and again: then they come down as soon as they can.
            while log.len() < 1_000 {
                block_on(Timer::after(MS / 2));
            }
            assert!(log.take().is_sorted(), "{distance} ms");
        }
    });
}

/// The clock of a fresh process, see `common/clock.c`.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod set_clock {
    use super::*;
    use std::{
        env,
        fs::File,
        os::unix::{fs::FileExt, net::UnixStream},
        path::Path,
        process::{Command, Stdio},
    };

    const WHERE: &str = "SMOL_TEST_CLOCK";

    pub(crate) struct Clock {
        words: File,
        env: [(&'static str, String); 2],
        _dir: Option<tempfile::TempDir>,
    }

    impl Clock {
        /// In the parent: builds what the child preloads, if there is a C compiler. In the child:
        /// the clock, if it can be set.
        pub(crate) fn new() -> Option<Clock> {
            if let Some(path) = env::var_os(WHERE) {
                let words = File::options().write(true).open(path).unwrap();
                let clock = Clock { words, env: Default::default(), _dir: None };
                clock.stand(BEGIN);
                let works =
                    Instant::now().elapsed().is_zero() && Instant::now().elapsed().is_zero();
                if !works {
                    eprintln!("skipped: the clock of this process cannot be set");
                }
                return works.then_some(clock);
            }
            let dir = tempfile::tempdir().unwrap();
            let (shim, words) = (dir.path().join("clock.so"), dir.path().join("clock"));
            if let Err(why) = build(&shim) {
                eprintln!("skipped: {why}");
                return None;
            }
            std::fs::write(&words, [0; 16]).unwrap();
            let text = |path: &Path| path.to_str().unwrap().to_string();
            Some(Clock {
                words: File::open(&words).unwrap(),
                env: [("LD_PRELOAD", text(&shim)), (WHERE, text(&words))],
                _dir: Some(dir),
            })
        }

        pub(crate) fn env(&self) -> [(&str, &str); 2] {
            self.env.each_ref().map(|(key, value)| (*key, &**value))
        }

        /// Stops the clock at a moment, in nanoseconds since it began.
        pub(crate) fn stand(&self, nanos: u64) {
            self.words.write_all_at(&nanos.to_ne_bytes(), 8).unwrap();
        }

        /// Lets the clock run, from now on so many nanoseconds after the true one.
        pub(crate) fn run_ahead(&self, nanos: u64) {
            self.words.write_all_at(&nanos.to_ne_bytes(), 0).unwrap();
            self.stand(0);
        }
    }

    fn build(shim: &Path) -> io::Result<()> {
        let mut cc = Command::new(env::var_os("CC").unwrap_or("cc".into()))
            .args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-ldl", "-o"])
            .arg(shim)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|err| io::Error::other(format!("no C compiler ({err})")))?;
        let source = include_bytes!("common/clock.c");
        io::Write::write_all(&mut cc.stdin.take().unwrap(), source)?;
        match cc.wait()?.success() {
            true => Ok(()),
            false => Err(io::Error::other("the C compiler failed")),
        }
    }

    /// Where the standing clock begins: not at zero, which means that it runs.
    pub(crate) const BEGIN: u64 = 1_000_000_000;

    pub(crate) struct Watched {
        pub(crate) timer: Timer,
        waker: Waker,
        /// The nanoseconds since [`BEGIN`], as the others here.
        pub(crate) deadline: u64,
        made: usize,
    }

    /// Many timers, and what they are compared with: a sorted list.
    pub(crate) struct World<'a> {
        clock: &'a Clock,
        begin: Instant,
        pub(crate) now: u64,
        made: usize,
        pub(crate) timers: Vec<Watched>,
        log: Log,
        sockets: (Async<UnixStream>, Async<UnixStream>),
    }

    impl World<'_> {
        pub(crate) fn new(clock: &Clock) -> World<'_> {
            // Time begins for the wheel when it sees its first timer.
            assert!(poll_once_with(&mut Timer::after(HOUR), Waker::noop()).is_pending());
            World {
                clock,
                begin: Instant::now(),
                now: 0,
                made: 0,
                timers: Vec::new(),
                log: Log::default(),
                sockets: Async::<UnixStream>::pair().unwrap(),
            }
        }

        pub(crate) fn at(&self, nanos: u64) -> Instant {
            self.begin + Duration::from_nanos(nanos)
        }

        /// Adds a timer whose deadline is ahead.
        pub(crate) fn add(&mut self, deadline: u64) {
            let (made, deadline) = (self.made, deadline.max(self.now + 1));
            self.made += 1;
            let at = self.at(deadline);
            let waker = self.log.waker(made);
            let mut timer = Timer::at(at);
            assert!(self.log.poll(&mut timer, &waker).is_pending());
            self.timers.push(Watched { timer, waker, deadline, made });
        }

        /// Sets a timer anew. It keeps its place among those of one deadline.
        pub(crate) fn set(&mut self, i: usize, deadline: u64) {
            let deadline = deadline.max(self.now + 1);
            let at = self.at(deadline);
            let watched = &mut self.timers[i];
            watched.deadline = deadline;
            watched.timer.set_at(at);
        }

        /// Sets the clock and has the kernel asked: exactly those that are due are woken, in order.
        #[track_caller]
        pub(crate) fn go(&mut self, now: u64) {
            self.clock.stand(BEGIN + now);
            self.now = now;
            block_on(async {
                let mut byte = [0];
                let mut reading = pin!(async { (&self.sockets.0).read(&mut byte).await });
                assert!(future::poll_once(reading.as_mut()).await.is_none());
                (&self.sockets.1).write_all(b"x").await.unwrap();
                reading.await.unwrap();
            });
            let due = self.timers.iter().filter(|timer| timer.deadline <= now);
            let mut due: Vec<_> = due.map(|timer| (timer.deadline, timer.made)).collect();
            due.sort();
            common::eventually(|| self.log.len() >= due.len());
            let order = self.log.take();
            assert_eq!(order, due.iter().map(|due| due.1).collect::<Vec<_>>(), "at {now}");
            self.timers.retain_mut(|Watched { timer, waker, deadline, .. }| {
                let is_due = *deadline <= now;
                assert_eq!(self.log.poll(timer, waker).is_ready(), is_due, "{deadline} at {now}");
                !is_due
            });
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
use set_clock::{Clock, World};

/// A wheel has an end, whatever its size. This one had it after 2^56 nanoseconds.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[test]
fn timers_fire_when_the_process_has_run_for_834_days() {
    let Some(clock) = Clock::new() else { return };
    fresh_process(20, &clock.env(), || {
        clock.run_ahead(0);
        block_on(async {
            Timer::after(MS).await;
            // It comes through on each level.
            let mut days: Vec<_> = (1..834).map(|day| Timer::after(day * 24 * HOUR)).collect();
            for day in &mut days {
                let _ = future::poll_once(day).await;
            }
            clock.run_ahead((1 << 56) - 100_000_000);
            let far = Timer::after(400 * MS);
            let deadline = Instant::now() + 400 * MS;
            let mut far = spawn(far);
            for _ in 0..25 {
                Timer::after(10 * MS).await;
                timeout(HOUR, spawn(Timer::after(MS))).await.unwrap();
            }
            assert!(Instant::now() >= deadline || future::poll_once(&mut far).await.is_none());
            far.await;
            assert!(Instant::now() >= deadline);
            for day in days {
                day.await;
            }
        });
    });
}

/// 2^20 nanoseconds are a tick of the wheel, and each level is 64 times as wide as the one before.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[test]
fn timers_around_the_edges_of_every_level_fire_exactly_at_their_time() {
    let Some(clock) = Clock::new() else { return };
    fresh_process(60, &clock.env(), || {
        let mut world = World::new(&clock);
        let edges =
            (0..8).flat_map(|level| [1, 2, 33, 63].map(|n| (n as u128) << (20 + 6 * level)));
        let edges: Vec<_> = edges.filter(|edge| *edge < 1 << 62).map(|edge| edge as u64).collect();
        // Some are set from afar, and come down level by level.
        for &edge in &edges {
            for deadline in [edge + 1, edge, edge - 1, edge, edge + 1] {
                world.add(deadline);
            }
        }
        for edge in edges {
            for before in [1 << 40, 1 << 27, 3 << 20, 1 << 20, 1 << 19, 2] {
                if edge.saturating_sub(before) > world.now {
                    world.go(edge - before);
                    for around in [0, 1, 1 << 20, 1 << 26, edge] {
                        world.add(edge + around);
                        world.add(edge.saturating_sub(around));
                        world.add(edge - 1);
                        world.add(edge + around);
                    }
                }
            }
            for now in [edge - 1, edge, edge + 1, edge + (1 << 20)] {
                world.go(now);
            }
        }
    });
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[test]
fn whatever_is_set_and_however_the_clock_jumps_timers_fire_as_in_a_sorted_list() {
    let Some(clock) = Clock::new() else { return };
    fresh_process(60, &clock.env(), || {
        let mut world = World::new(&clock);
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        // A distance of any order of magnitude, or to the edge of a level and thereabouts.
        let later = |now: u64, random: &mut fastrand::Rng| {
            let bits = random.u32(0..56);
            let far = now + random.u64(0..1 << bits) + 1;
            match random.u8(0..3) {
                0 => (((far >> bits) + 1) << bits) - 1 + random.u64(0..3),
                _ => far,
            }
        };
        for _ in 0..3_000 {
            match random.u8(0..10) {
                0..5 => world.add(later(world.now, &mut random)),
                5 | 6 if !world.timers.is_empty() => {
                    let i = random.usize(0..world.timers.len());
                    let deadline = later(world.now, &mut random);
                    world.set(i, deadline);
                }
                7 if !world.timers.is_empty() => {
                    let i = random.usize(0..world.timers.len());
                    drop(world.timers.swap_remove(i));
                }
                8 if !world.timers.is_empty() => {
                    let timers = world.timers.iter().map(|timer| timer.deadline);
                    let next = timers.min().unwrap();
                    world.go((next - 1).max(world.now));
                    world.go(next);
                }
                // Some 100 years in all.
                _ => {
                    let now = later(world.now, &mut random).min(world.now + (1 << 54));
                    if now < 1 << 62 {
                        world.go(now);
                    }
                }
            }
        }
    });
}
