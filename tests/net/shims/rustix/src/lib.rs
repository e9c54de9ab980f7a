//! rustix, in which nothing blocks but simulated threads.
//!
//! What is not here is rustix's own. A call that may wait asks the kernel with a timeout of zero,
//! behind a simulated wait; epoll, eventfd, sockets and pipes are real, since what one simulated
//! thread writes is there at once. A timer descriptor follows the virtual clock, a futex is
//! simulated, and children are those of `sim::process`.

#![deny(unsafe_code)]
#![allow(missing_docs)]

pub use real::*;

use std::os::fd::AsFd;
use std::panic::Location;

use real::event::{PollFd, PollFlags, Timespec};
use sim::scheduler::{Woken, now, point, random, wait_until};

/// A timeout as a deadline of the virtual time: `None` is never, and a timeout of zero is now.
fn deadline(timeout: Option<&Timespec>) -> Option<u64> {
    timeout.map(|time| now() + time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn is_zero(timeout: Option<&Timespec>) -> bool {
    timeout.is_some_and(|time| time.tv_sec == 0 && time.tv_nsec == 0)
}

/// Whether there is something to read, or for an epoll instance, whether there are events.
fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    real::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

pub mod event {
    pub use real::event::*;

    use super::*;

    #[track_caller]
    pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> real::io::Result<usize> {
        let at = Location::caller();
        point("poll", at);
        if !is_zero(timeout) {
            wait_until("poll", at, deadline(timeout), false, || {
                real::event::poll(fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            });
        }
        real::event::poll(fds, Some(&Timespec::default()))
    }

    pub mod epoll {
        pub use real::event::epoll::*;

        use super::super::*;
        use real::buffer::Buffer;

        #[track_caller]
        pub fn wait<Buf: Buffer<Event>>(
            epoll: impl AsFd,
            events: Buf,
            timeout: Option<&Timespec>,
        ) -> real::io::Result<Buf::Output> {
            let at = Location::caller();
            point("epoll_wait", at);
            if !is_zero(timeout) {
                let epoll = epoll.as_fd();
                let woken =
                    wait_until("epoll_wait", at, deadline(timeout), true, || is_readable(epoll));
                if woken == Woken::Spurious {
                    return Err(real::io::Errno::INTR);
                }
            }
            real::event::epoll::wait(epoll, events, Some(&Timespec::default()))
        }

        #[track_caller]
        pub fn add(
            epoll: impl AsFd,
            source: impl AsFd,
            data: EventData,
            flags: EventFlags,
        ) -> real::io::Result<()> {
            point("epoll_ctl", Location::caller());
            real::event::epoll::add(epoll, source, data, flags)
        }

        #[track_caller]
        pub fn modify(
            epoll: impl AsFd,
            source: impl AsFd,
            data: EventData,
            flags: EventFlags,
        ) -> real::io::Result<()> {
            point("epoll_ctl", Location::caller());
            real::event::epoll::modify(epoll, source, data, flags)
        }

        #[track_caller]
        pub fn delete(epoll: impl AsFd, source: impl AsFd) -> real::io::Result<()> {
            point("epoll_ctl", Location::caller());
            real::event::epoll::delete(epoll, source)
        }
    }
}

pub mod io {
    pub use real::io::*;

    use super::*;
    use real::buffer::Buffer;

    #[track_caller]
    pub fn read<Buf: Buffer<u8>>(fd: impl AsFd, buf: Buf) -> Result<Buf::Output> {
        let at = Location::caller();
        point("read", at);
        let fd = fd.as_fd();
        let may_block = sim::clocks::blocks(fd)
            || real::fs::fcntl_getfl(fd).is_ok_and(|flags| {
                !flags.contains(real::fs::OFlags::NONBLOCK) && !sim::clocks::is_clock(fd)
            });
        if may_block {
            wait_until("read", at, None, false, || is_readable(fd));
        }
        real::io::read(fd, buf)
    }

    #[track_caller]
    pub fn write(fd: impl AsFd, buf: &[u8]) -> Result<usize> {
        point("write", Location::caller());
        real::io::write(fd, buf)
    }

    /// What is in the page cache is the seed's decision.
    #[track_caller]
    pub fn preadv2(
        fd: impl AsFd,
        bufs: &mut [std::io::IoSliceMut<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> Result<usize> {
        point("preadv2", Location::caller());
        if flags.contains(ReadWriteFlags::NOWAIT) && random(2) == 0 {
            return Err(Errno::AGAIN);
        }
        real::io::preadv2(fd, bufs, offset, flags - ReadWriteFlags::NOWAIT)
    }
}

pub mod time {
    pub use real::time::*;

    use super::*;
    use real::fd::OwnedFd;
    use std::time::Duration;

    pub fn clock_gettime(_clock: ClockId) -> Timespec {
        let now = now();
        let (secs, nanos) = (now / 1_000_000_000, now % 1_000_000_000);
        Timespec { tv_sec: secs as i64, tv_nsec: nanos as i64 }
    }

    #[track_caller]
    pub fn timerfd_create(
        _clock: TimerfdClockId,
        flags: TimerfdFlags,
    ) -> real::io::Result<OwnedFd> {
        point("timerfd_create", Location::caller());
        let blocks = !flags.contains(TimerfdFlags::NONBLOCK);
        sim::clocks::create(blocks).map_err(|_| real::io::Errno::MFILE)
    }

    #[track_caller]
    pub fn timerfd_settime(
        fd: impl AsFd,
        flags: TimerfdTimerFlags,
        value: &Itimerspec,
    ) -> real::io::Result<Itimerspec> {
        point("timerfd_settime", Location::caller());
        assert!(flags.is_empty(), "only relative times are simulated");
        let time = |time: &Timespec| Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        if !sim::clocks::set(fd, time(&value.it_value), time(&value.it_interval)) {
            return Err(real::io::Errno::INVAL);
        }
        Ok(Itimerspec { it_interval: Timespec::default(), it_value: Timespec::default() })
    }
}

pub mod thread {
    pub use real::thread::*;

    pub mod futex {
        pub use real::thread::futex::*;

        use super::super::*;
        use sim::sync::atomic::AtomicU32;
        use std::cell::RefCell;

        /// Who waits: the address of the word, and a number.
        #[derive(Default)]
        struct Waiting {
            entries: Vec<(usize, u64)>,
            next: u64,
        }

        thread_local! {
            static WAITING: RefCell<Waiting> = RefCell::default();
        }

        #[track_caller]
        pub fn wait(
            word: &AtomicU32,
            _flags: Flags,
            value: u32,
            timeout: Option<&Timespec>,
        ) -> real::io::Result<()> {
            let at = Location::caller();
            point("futex_wait", at);
            if word.peek() != value {
                return Err(real::io::Errno::AGAIN);
            }
            let entry = WAITING.with_borrow_mut(|waiting| {
                waiting.next += 1;
                let entry = (word as *const AtomicU32 as usize, waiting.next);
                waiting.entries.push(entry);
                entry
            });
            let woken = wait_until("futex_wait", at, deadline(timeout), true, || {
                WAITING.with_borrow(|waiting| !waiting.entries.contains(&entry))
            });
            WAITING.with_borrow_mut(|waiting| waiting.entries.retain(|other| *other != entry));
            match woken {
                Woken::True => Ok(()),
                Woken::Timeout => Err(real::io::Errno::TIMEDOUT),
                Woken::Spurious => Err(real::io::Errno::INTR),
            }
        }

        #[track_caller]
        pub fn wake(word: &AtomicU32, _flags: Flags, threads: u32) -> real::io::Result<usize> {
            point("futex_wake", Location::caller());
            let address = word as *const AtomicU32 as usize;
            let mut woken = 0;
            WAITING.with_borrow_mut(|waiting| {
                waiting.entries.retain(|(other, _)| {
                    let take = *other == address && woken < threads;
                    woken += take as u32;
                    !take
                });
            });
            Ok(woken as usize)
        }
    }
}

pub mod process {
    pub use real::process::*;

    use super::*;
    use real::fd::OwnedFd;
    use sim::process::{Found, kill, kill_by_pidfd, look, pidfd};

    /// rustix's own can be made by rustix only.
    #[derive(Clone, Copy, Debug)]
    pub struct WaitStatus(i32);

    impl WaitStatus {
        pub fn as_raw(self) -> i32 {
            self.0
        }

        pub fn exit_status(&self) -> Option<i32> {
            (self.0 & 0x7f == 0).then_some(self.0 >> 8 & 0xff)
        }

        pub fn terminating_signal(&self) -> Option<i32> {
            (self.0 & 0x7f != 0).then_some(self.0 & 0x7f)
        }
    }

    fn number(pid: Pid) -> u32 {
        pid.as_raw_nonzero().get() as u32
    }

    #[track_caller]
    pub fn waitpid(
        pid: Option<Pid>,
        options: WaitOptions,
    ) -> real::io::Result<Option<(Pid, WaitStatus)>> {
        let pid = pid.expect("only waiting for one child is simulated");
        let found = if options.contains(WaitOptions::NOHANG) {
            look(number(pid), true)
        } else {
            loop {
                match sim::process::wait(number(pid), true) {
                    Found::Running => {}
                    found => break found,
                }
            }
        };
        match found {
            Found::Running => Ok(None),
            Found::Ended(status) => Ok(Some((pid, WaitStatus(status)))),
            Found::Nothing => Err(real::io::Errno::CHILD),
        }
    }

    /// It never tells the status, which nobody has asked for yet. Of all children at once it is
    /// only simulated that somebody waits until one has ended, and leaves it to others.
    #[track_caller]
    pub fn waitid<'a>(
        id: impl Into<WaitId<'a>>,
        options: WaitIdOptions,
    ) -> real::io::Result<Option<WaitIdStatus>> {
        let take = !options.contains(WaitIdOptions::NOWAIT);
        let at_once = options.contains(WaitIdOptions::NOHANG);
        let found = match id.into() {
            WaitId::Pid(pid) if at_once => look(number(pid), take),
            WaitId::Pid(pid) => sim::process::wait(number(pid), take),
            WaitId::All if !take && !at_once => match sim::process::wait_for_any() {
                true => return Ok(None),
                false => Found::Nothing,
            },
            _ => panic!("this way of waiting for children is not simulated"),
        };
        if found == Found::Nothing { Err(real::io::Errno::CHILD) } else { Ok(None) }
    }

    #[track_caller]
    pub fn pidfd_open(pid: Pid, _flags: PidfdFlags) -> real::io::Result<OwnedFd> {
        pidfd(number(pid)).map_err(|_| real::io::Errno::NOSYS)
    }

    #[track_caller]
    pub fn pidfd_send_signal(pidfd: impl AsFd, signal: Signal) -> real::io::Result<()> {
        assert!(signal == Signal::KILL, "only SIGKILL is simulated");
        if kill_by_pidfd(pidfd) { Ok(()) } else { Err(real::io::Errno::SRCH) }
    }

    #[track_caller]
    pub fn kill_process(pid: Pid, signal: Signal) -> real::io::Result<()> {
        assert!(signal == Signal::KILL, "only SIGKILL is simulated");
        if kill(number(pid)) { Ok(()) } else { Err(real::io::Errno::SRCH) }
    }
}
