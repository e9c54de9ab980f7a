//! Descriptors that become readable at a moment of the virtual time: timerfd(2) as an eventfd(2)
//! that is written when its time has come.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::scheduler::now;

struct Clock {
    /// A duplicate, so that the number stays this clock's.
    event: OwnedFd,
    /// The library's number.
    number: RawFd,
    at: Option<u64>,
    interval: u64,
    blocks: bool,
}

thread_local! {
    static CLOCKS: RefCell<Vec<Clock>> = const { RefCell::new(Vec::new()) };
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// From now on there are none to be had, as in some sandboxes.
pub fn forbid() {
    FORBIDDEN.set(true);
}

/// A clock that is not set. `blocks`: whoever reads it waits.
pub fn create(blocks: bool) -> io::Result<OwnedFd> {
    if FORBIDDEN.get() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let event = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
    let clock = Clock { event, number: fd.as_raw_fd(), at: None, interval: 0, blocks };
    CLOCKS.with_borrow_mut(|clocks| {
        // The number of a clock that was closed may come again.
        clocks.retain(|other| other.number != clock.number);
        clocks.push(clock);
    });
    Ok(fd)
}

fn with<T>(fd: impl AsFd, f: impl FnOnce(&mut Clock) -> T) -> Option<T> {
    let number = fd.as_fd().as_raw_fd();
    CLOCKS.with_borrow_mut(|clocks| clocks.iter_mut().find(|clock| clock.number == number).map(f))
}

/// Sets a clock to ring after so long (never, if zero), and again after each interval. `false` if
/// it is none.
pub fn set(fd: impl AsFd, after: Duration, interval: Duration) -> bool {
    let set = with(fd, |clock| {
        // Setting it takes back what it has counted.
        let _ = rustix::io::read(&clock.event, &mut [0; 8]);
        clock.at = (!after.is_zero()).then(|| now() + after.as_nanos() as u64);
        clock.interval = interval.as_nanos() as u64;
    });
    set.is_some()
}

/// Whether it is a clock whose reader waits.
pub fn blocks(fd: impl AsFd) -> bool {
    with(fd, |clock| clock.blocks).unwrap_or(false)
}

/// Whether it is a clock at all.
pub fn is_clock(fd: impl AsFd) -> bool {
    with(fd, |_| ()).is_some()
}

/// The earliest moment at which one of them rings.
pub(crate) fn earliest() -> Option<u64> {
    CLOCKS.with_borrow(|clocks| clocks.iter().filter_map(|clock| clock.at).min())
}

/// Rings those whose time has come.
pub(crate) fn fire(now: u64) {
    CLOCKS.with_borrow_mut(|clocks| {
        for clock in clocks.iter_mut().filter(|clock| clock.at.is_some_and(|at| at <= now)) {
            let _ = rustix::io::write(&clock.event, &1u64.to_ne_bytes());
            clock.at = (clock.interval > 0).then(|| now + clock.interval);
        }
    });
}
