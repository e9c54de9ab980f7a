//! The ten questions of the README, answered by ten small programs. (`cargo tour` prints the same story from the inside.)

mod common;

use common::{socket_pair, within};
use smol::{Async, Timer, future, prelude::*};
use std::{
    future::{pending, poll_fn},
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    sync::{Arc, mpsc},
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

const MS: Duration = Duration::from_millis(1);

/// Counts how often a future is polled.
async fn counting<T>(polls: Arc<AtomicUsize>, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|cx| {
        polls.fetch_add(1, SeqCst);
        future.as_mut().poll(cx)
    })
    .await
}

#[test]
fn a_future_lives_in_a_box_behind_a_handle_of_one_pointer() {
    let large = [1; 1000];
    let task = smol::spawn(async move {
        future::yield_now().await;
        large.iter().sum::<usize>()
    });
    assert_eq!(size_of_val(&task), size_of::<usize>());
    assert_eq!(within(10, || smol::block_on(task)), 1000);
}

#[test]
fn a_pending_task_is_not_polled_until_it_is_woken() {
    let polls = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = async_channel::bounded(1);
    let recv = async move { receiver.recv().await };
    let task = smol::spawn(counting(polls.clone(), recv));
    thread::sleep(50 * MS);
    assert_eq!(polls.load(SeqCst), 1);
    sender.try_send(7).unwrap();
    assert_eq!(within(10, || smol::block_on(task)), Ok(7));
    assert_eq!(polls.load(SeqCst), 2);
}

#[test]
fn what_waits_behind_a_blocked_task_is_stolen() {
    let blocked = smol::spawn(async {
        let (sender, receiver) = mpsc::channel();
        let here = thread::current().id();
        let send = async move { sender.send(thread::current().id()).unwrap() };
        smol::spawn(send).detach();
        // The other task was queued on this thread, which now waits for it.
        assert_ne!(receiver.recv().unwrap(), here);
    });
    within(10, || smol::block_on(blocked));
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_runtime_uses_no_processor_time() {
    common::fresh_process(30, &[], || {
        let (client, server) = socket_pair();
        let idle = smol::spawn(async move { (&client).read(&mut [0]).await });
        let far = smol::spawn(async { Timer::after(Duration::from_secs(3600)).await });
        let (_, wake_ups) = common::idle_cost(200 * MS);
        assert_eq!(wake_ups, 0);
        drop((server, idle, far));
    });
}

#[test]
fn waking_twice_polls_once() {
    let polls = Arc::new(AtomicUsize::new(0));
    let ex = smol::Executor::new();
    let (sender, receiver) = mpsc::channel::<Waker>();
    let give_waker = poll_fn(move |cx| -> Poll<()> {
        sender.send(cx.waker().clone()).unwrap();
        Poll::Pending
    });
    let _task = ex.spawn(counting(polls.clone(), give_waker));
    assert!(ex.try_tick());
    let waker = receiver.recv().unwrap();
    waker.wake_by_ref();
    waker.wake();
    while ex.try_tick() {}
    assert_eq!(polls.load(SeqCst), 2);
}

#[test]
fn a_wake_up_between_looking_and_falling_asleep_is_not_lost() {
    let (ping, pinged) = async_channel::bounded(1);
    let (pong, ponged) = async_channel::bounded(1);
    let echo = smol::spawn(async move {
        while let Ok(i) = pinged.recv().await {
            pong.send(i).await.unwrap();
        }
    });
    // Each time, both sides are about to fall asleep when the other one's message comes.
    let main = async {
        for i in 0..20_000 {
            ping.send(i).await.unwrap();
            assert_eq!(ponged.recv().await, Ok(i));
        }
    };
    within(60, || smol::block_on(main));
    drop((ping, echo));
}

#[test]
fn a_byte_wakes_its_reader_and_nobody_else() {
    let polls = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let ((one, to_one), (two, _to_two)) = (socket_pair(), socket_pair());
    let read = |mut socket: Async<TcpStream>, polls: &Arc<AtomicUsize>| {
        let read = async move { socket.read(&mut [0; 9]).await };
        smol::spawn(counting(polls.clone(), read))
    };
    let (reader, _other) = (read(one, &polls[0]), read(two, &polls[1]));
    thread::sleep(50 * MS);
    within(10, || smol::block_on((&to_one).write_all(b"!"))).unwrap();
    assert_eq!(within(10, || smol::block_on(reader)).unwrap(), 1);
    assert_eq!(polls.map(|polls| polls.load(SeqCst)), [2, 1]);
}

#[test]
fn a_new_earliest_timer_is_heard_by_a_thread_that_sleeps_until_a_later_one() {
    let late = smol::spawn(async { Timer::after(Duration::from_secs(3600)).await });
    thread::sleep(50 * MS);
    let start = Instant::now();
    within(10, || smol::block_on(Timer::after(20 * MS)));
    assert!(start.elapsed() >= 20 * MS);
    drop(late);
}

#[test]
fn what_blocks_in_unblock_holds_up_nobody() {
    let (sender, receiver) = mpsc::channel();
    let sleepers: Vec<_> = (0..50).map(|_| smol::unblock(|| thread::sleep(100 * MS))).collect();
    let waiting = smol::unblock(move || receiver.recv().unwrap());
    // Fifty threads sleep and one waits; tasks, timers and one more job run all the same.
    within(10, || {
        smol::block_on(async {
            smol::spawn(async { Timer::after(MS).await }).await;
            smol::unblock(move || sender.send(7).unwrap()).await;
            assert_eq!(waiting.await, 7);
        });
    });
    drop(sleepers);
}

#[test]
fn a_dropped_task_is_cancelled_and_a_panic_reaches_only_who_awaits_it() {
    let guard = Arc::new(());
    let inside = guard.clone();
    let task = smol::spawn(async move {
        pending::<()>().await;
        drop(inside);
    });
    assert!(within(10, || smol::block_on(task.cancel())).is_none());
    assert_eq!(Arc::strong_count(&guard), 1);

    let panics = smol::spawn(async { panic!("on purpose") });
    let caught = catch_unwind(AssertUnwindSafe(|| smol::block_on(panics)));
    let payload = caught.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(*payload, "on purpose");
    assert_eq!(smol::block_on(smol::spawn(async { 7 })), 7);
}
