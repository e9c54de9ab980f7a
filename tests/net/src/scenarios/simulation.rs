//! The simulation itself: what the runtime is built on, without the runtime.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking::Parker;
use polling::{Event, Events, PollMode, Poller};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::{Scenario, scenario};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_parker_is_unparked_or_times_out).steady_clock().may_be_late(2),
        scenario!(a_poller_is_notified_or_times_out).steady_clock().may_be_late(2),
        scenario!(the_event_of_the_notifier_is_taken_by_a_wait_of_zero),
        scenario!(a_timer_descriptor_is_slept_on).steady_clock().may_be_late(2),
    ]
}

fn a_parker_is_unparked_or_times_out() {
    needs(millis(5));
    let parker = Parker::new();
    let unparker = parker.unparker();
    let told = Arc::new(AtomicBool::new(false));
    let other = thread("other", {
        let told = told.clone();
        move || {
            told.store(true, Ordering::SeqCst);
            unparker.unpark();
        }
    });
    parker.park();
    assert!(told.load(Ordering::SeqCst));
    let began = Instant::now();
    // It may return for no reason, as the condition variable beneath may.
    while began.elapsed() < millis(5) {
        assert!(!parker.park_timeout(millis(5) - began.elapsed()));
    }
    join([other]);
}

fn a_poller_is_notified_or_times_out() {
    needs(millis(5));
    let poller = Arc::new(Poller::new().unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    add(&poller, &ours, 7);
    let mut events = Events::new();
    let notifier = thread("notifier", {
        let poller = poller.clone();
        move || poller.notify().unwrap()
    });
    assert_eq!(poller.wait(&mut events, None).unwrap(), 0);
    let began = Instant::now();
    assert_eq!(poller.wait(&mut events, Some(millis(5))).unwrap(), 0);
    assert!(began.elapsed() >= millis(5));
    let writer = thread("writer", move || std::io::Write::write_all(&mut &theirs, b"x").unwrap());
    while poller.wait(&mut events, None).unwrap() == 0 {}
    assert_eq!(events.iter().next().map(|event| event.key), Some(7));
    poller.delete(&ours).unwrap();
    join([notifier, writer]);
}

#[allow(unsafe_code)]
fn add(poller: &Poller, socket: &UnixStream, key: usize) {
    // SAFETY: the caller deletes the socket before it is closed, or never waits again.
    unsafe { poller.add_with_mode(socket, Event::readable(key), PollMode::Edge) }.unwrap();
}

fn the_event_of_the_notifier_is_taken_by_a_wait_of_zero() {
    let poller = Arc::new(Poller::new().unwrap());
    let notified = |timeout: Option<&Timespec>| {
        let mut events = Vec::<epoll::Event>::with_capacity(4);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        let got = epoll::wait(poller.as_fd(), buffer, timeout);
        got.unwrap_or(0)
    };
    for _ in 0..2 {
        let notifier = thread("notifier", {
            let poller = poller.clone();
            move || poller.notify().unwrap()
        });
        while notified(None) == 0 {}
        // The real one is told only once until somebody has taken it.
        assert_eq!(poller.wait(&mut Events::new(), Some(Duration::ZERO)).unwrap(), 0);
        assert_eq!(notified(Some(&Timespec::default())), 0);
        join([notifier]);
    }
}

fn a_timer_descriptor_is_slept_on() {
    needs(millis(9));
    let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    let set = |ms: i64| {
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 },
        };
        timerfd_settime(&clock, TimerfdTimerFlags::empty(), &value).unwrap();
    };
    let began = Instant::now();
    set(4);
    assert_eq!(rustix::io::read(&clock, &mut [0; 8]).unwrap(), 8);
    assert!(began.elapsed() >= millis(4));
    set(5);
    let mut fds = [PollFd::new(&clock, PollFlags::IN)];
    let short = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    assert_eq!(poll(&mut fds, Some(&short)).unwrap(), 0);
    assert_eq!(poll(&mut fds, None).unwrap(), 1);
    assert!(began.elapsed() >= millis(9));
}
