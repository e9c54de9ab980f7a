//! `Async<T>`: whoever waits for a handle is woken when it is ready, only then, and gets the truth about it; waiting costs nothing.

#![cfg(unix)]

mod common;
mod common_io;

use common::{
    Flag, counting_waker, foreign_block_on, fresh_process, hook_waker, live_bytes, within,
};
use common_io::{fill, pipe, std_pipe, waits_for};
use smol::{
    Async, Executor, LocalExecutor, Timer, block_on, future, io::BufReader, prelude::*, spawn,
    spawn_local, stream, timeout,
};
use std::{
    alloc::System,
    cell::Cell,
    fs::File,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    thread,
    time::Duration,
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

fn pair() -> (Async<UnixStream>, Async<UnixStream>) {
    Async::<UnixStream>::pair().unwrap()
}

fn is_nonblocking(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK)
}

/// Reads with std until there is nothing left.
fn drain(mut reader: impl Read) -> usize {
    let mut total = 0;
    loop {
        match reader.read(&mut [0; 4096]) {
            Ok(0) => return total,
            Ok(n) => total += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return total,
            Err(e) => panic!("cannot drain: {e}"),
        }
    }
}

// ---------- making and taking apart ----------

#[test]
fn a_new_handle_is_non_blocking_and_stays_so_when_taken_out() {
    let (a, b) = UnixStream::pair().unwrap();
    assert!(!is_nonblocking(&a));
    let a = Async::new(a).unwrap();
    assert!(is_nonblocking(&a));
    let a: UnixStream = a.into_inner().unwrap();
    assert!(is_nonblocking(&a));
    // `new_nonblocking` trusts its caller.
    let b = Async::new_nonblocking(b).unwrap();
    assert!(!is_nonblocking(&b));
}

#[test]
fn every_type_of_std_can_be_wrapped_shown_and_taken_out() {
    fn check<T, E: std::fmt::Debug>(name: &str, io: T)
    where
        T: AsFd + AsRawFd + std::fmt::Debug,
        Async<T>: TryFrom<T, Error = E> + AsFd + AsRawFd + std::fmt::Debug,
    {
        let raw = io.as_raw_fd();
        let handle = Async::try_from(io).unwrap();
        assert!(is_nonblocking(&handle), "{name}");
        assert_eq!(handle.as_raw_fd(), raw);
        assert_eq!(handle.as_fd().as_raw_fd(), raw);
        assert_eq!(handle.get_ref().as_raw_fd(), raw);
        assert!(format!("{handle:?}").contains(name), "{handle:?}");
        assert_eq!(handle.into_inner().unwrap().as_raw_fd(), raw);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    check("TcpStream", TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    check("TcpListener", listener);
    check("UdpSocket", UdpSocket::bind("127.0.0.1:0").unwrap());
    check("UnixStream", UnixStream::pair().unwrap().0);
    check("UnixDatagram", UnixDatagram::unbound().unwrap());
    let dir = tempfile::tempdir().unwrap();
    check("UnixListener", UnixListener::bind(dir.path().join("socket")).unwrap());
}

#[test]
fn a_handle_can_be_taken_out_and_registered_a_thousand_times() {
    within(20, || {
        let (mut a, b) = pair();
        block_on(async {
            for round in 0..1_000u32 {
                assert!(future::poll_once(a.readable()).await.is_none());
                a = Async::new(a.into_inner().unwrap()).unwrap();
                if round % 100 == 0 {
                    (&b).write_all(b"x").await.unwrap();
                    assert_eq!((&a).read(&mut [0; 2]).await.unwrap(), 1);
                }
            }
        });
    });
}

#[test]
fn into_inner_is_an_error_while_clones_exist_and_harms_none_of_them() {
    within(10, || {
        block_on(async {
            let (a, b) = pair();
            let clone = a.clone();
            let second = clone.clone();
            a.into_inner().unwrap_err();
            second.into_inner().unwrap_err();
            let reading = spawn({
                let clone = clone.clone();
                async move {
                    let mut byte = [0];
                    (&clone).read_exact(&mut byte).await.unwrap();
                    byte
                }
            });
            (&b).write_all(b"x").await.unwrap();
            assert_eq!(reading.await, *b"x");
            clone.into_inner().unwrap(); // the last one
        });
    });
}

#[test]
fn clones_split_a_socket_into_a_reading_and_a_writing_task() {
    within(20, || {
        let (a, b) = pair();
        const SIZE: usize = 1_000_000;
        let data: Vec<u8> = (0..SIZE).map(|i| (i * 31 % 251) as u8).collect();
        let sides = [a, b].map(|side| {
            let (mut reader, mut writer) = (side.clone(), side);
            let data = data.clone();
            let sent = data.clone();
            let writing = spawn(async move {
                writer.write_all(&sent).await.unwrap();
                writer.close().await.unwrap();
            });
            let reading = spawn(async move {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).await.unwrap();
                assert!(received == data);
            });
            (reading, writing)
        });
        block_on(async {
            for (reading, writing) in sides {
                reading.await;
                writing.await;
            }
        });
    });
}

#[test]
fn a_dropped_clone_does_not_disturb_those_who_wait_on_another() {
    within(10, || {
        block_on(async {
            let (a, b) = pair();
            let mut reading = pin!(async { (&a).read(&mut [0; 1]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            let clone = a.clone();
            assert!(future::poll_once(clone.readable()).await.is_none());
            drop(clone);
            (&b).write_all(b"x").await.unwrap();
            assert_eq!(reading.await.unwrap(), 1);
        });
    });
}

#[cfg(not(polling_test_poll_backend))] // poll(2) takes anything
#[test]
fn a_regular_file_is_refused_with_advice() {
    let file = tempfile::tempfile().unwrap();
    let error = Async::new(file.try_clone().unwrap()).unwrap_err();
    assert!(error.to_string().contains("Async::<File>::from"), "{error}");
    let error = Async::new_nonblocking(file).unwrap_err();
    assert!(error.to_string().contains("Async::<File>::from"), "{error}");
}

#[cfg(not(polling_test_poll_backend))] // poll(2) takes anything
#[test]
fn a_refused_registration_leaves_nothing_behind() {
    fresh_process(30, &[], || {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let try_it = || drop(Async::new(file.clone()).unwrap_err());
        (0..100).for_each(|_| try_it());
        let before = live_bytes();
        (0..10_000).for_each(|_| try_it());
        let grown = live_bytes() - before;
        assert!(grown < 64 * 1024, "{grown} bytes are still held");
    });
}

/// <https://github.com/smol-rs/polling/issues/151>
#[test]
fn a_handle_that_is_registered_twice_is_refused_and_the_first_registration_lives_on() {
    within(10, || {
        block_on(async {
            let (a, b) = UnixStream::pair().unwrap();
            let a = Arc::new(a);
            let first = Async::new(a.clone()).unwrap();
            for _ in 0..3 {
                assert_eq!(Async::new(a.clone()).unwrap_err().kind(), ErrorKind::AlreadyExists);
            }
            let mut readable = Box::pin(first.readable());
            assert!(future::poll_once(readable.as_mut()).await.is_none());
            assert_eq!(Async::new(a.clone()).unwrap_err().kind(), ErrorKind::AlreadyExists);
            (&b).write_all(b"x").unwrap();
            readable.await.unwrap();
            drop(first);
            // And now it is free again.
            let again = Async::new(a.clone()).unwrap();
            assert_eq!(again.read_with(|stream| (&**stream).read(&mut [0; 2])).await.unwrap(), 1);
        });
    });
}

#[test]
fn the_same_number_can_be_registered_again_after_its_handle_was_closed() {
    within(20, || {
        block_on(async {
            for _ in 0..300 {
                let (a, b) = pair();
                assert!(future::poll_once(a.readable()).await.is_none());
                (&b).write_all(b"x").await.unwrap();
                a.readable().await.unwrap();
                drop((a, b)); // the next pair gets the same numbers
                let (a, b) = pair();
                let mut reading = pin!(async { (&a).read(&mut [0; 1]).await });
                assert!(
                    future::poll_once(reading.as_mut()).await.is_none(),
                    "readiness of the handle before"
                );
                (&b).write_all(b"x").await.unwrap();
                assert_eq!(reading.await.unwrap(), 1);
            }
        });
    });
}

/// <https://github.com/tokio-rs/mio/issues/753>
#[cfg(target_os = "linux")]
#[test]
fn a_duplicate_that_outlives_its_handle_makes_no_work() {
    fresh_process(30, &[], || {
        let (a, b) = UnixStream::pair().unwrap();
        let duplicate = a.try_clone().unwrap();
        let handle = Async::new(a).unwrap();
        let stop = Flag::new();
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async { stop.wait().or(async { _ = Timer::after(HOUR).await }).await })
            });
            foreign_block_on(async {
                assert!(future::poll_once(handle.readable()).await.is_none());
            });
            drop(handle);
            // The kernel's object lives on and has something to say, but nobody listens.
            (&b).write_all(b"x").unwrap();
            let (cpu, switches) = common::idle_cost(500 * MS);
            assert!(switches <= 2 && cpu < 50 * MS, "{switches} wake-ups, {cpu:?}");
            // It can be registered on its own, and tells of what came meanwhile.
            let handle = Async::new(duplicate).unwrap();
            foreign_block_on(async { handle.readable().await.unwrap() });
            assert_eq!(foreign_block_on(async { (&handle).read(&mut [0; 2]).await }).unwrap(), 1);
            stop.set();
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn handles_executors_and_block_ons_leak_no_descriptors() {
    fresh_process(30, &[], || {
        let round = || {
            let (a, b) = pair();
            drop(a.clone());
            drop(pipe());
            block_on(async {
                Timer::after(Duration::ZERO).await;
                (&a).write_all(b"x").await.unwrap();
                (&b).read(&mut [0; 1]).await.unwrap();
            });
            let executor = Executor::new();
            executor.spawn(async {}).detach();
            foreign_block_on(executor.tick());
            let executor = LocalExecutor::new();
            block_on(executor.run(executor.spawn(async {})));
        };
        (0..10).for_each(|_| round());
        let before = common::open_fds();
        (0..1_000).for_each(|_| round());
        assert_eq!(common::open_fds(), before);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn descriptors_that_std_and_smol_do_not_know_work_too() {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    struct Counter(OwnedFd);
    impl AsFd for Counter {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    fn take(fd: impl AsFd) -> io::Result<u64> {
        let mut number = [0; 8];
        rustix::io::read(fd, &mut number)?;
        Ok(u64::from_ne_bytes(number))
    }

    within(10, || {
        block_on(async {
            let counter = Async::new(Counter(eventfd(0, EventfdFlags::CLOEXEC).unwrap())).unwrap();
            let add = |n: u64| rustix::io::write(counter.get_ref(), &n.to_ne_bytes()).unwrap();
            for n in 1..10 {
                let count =
                    waits_for("eventfd", counter.read_with(|c| take(c)), || {}, || _ = add(n))
                        .await;
                assert_eq!(count, n);
            }
            // It takes no more than u64::MAX - 1: then writing has to wait.
            add(u64::MAX - 1);
            let writing = counter.write_with(|c| Ok(rustix::io::write(c, &1u64.to_ne_bytes())?));
            waits_for("full eventfd", writing, || {}, || _ = take(counter.get_ref()).unwrap())
                .await;

            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
            let timer = Async::new(timer).unwrap();
            let mut spec = Itimerspec {
                it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
                it_value: Timespec { tv_sec: 0, tv_nsec: 2_000_000 },
            };
            timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &spec).unwrap();
            timer.readable().await.unwrap();
            assert_eq!(timer.read_with(|t| take(t)).await.unwrap(), 1);
            spec.it_interval.tv_nsec = 1_000_000;
            timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &spec).unwrap();
            let mut expirations = 0;
            while expirations < 5 {
                expirations += timer.read_with(|t| take(t)).await.unwrap();
            }
        });
    });
}

// ---------- each operation waits, and for the right direction ----------

/// <https://github.com/smol-rs/smol/commit/0e6345d>
#[test]
fn every_operation_of_streams_and_pipes_waits_for_its_own_direction() {
    within(30, || {
        type Op<'a> = Pin<Box<dyn Future<Output = io::Result<usize>> + 'a>>;
        type Make = for<'a> fn(&'a Async<UnixStream>) -> Op<'a>;
        let reads: [(&str, Make); 7] = [
            ("read", |a| Box::pin(async move { { a }.read(&mut [0; 8]).await })),
            ("read_vectored", |a| {
                Box::pin(async move {
                    { a }
                        .read_vectored(&mut [
                            IoSliceMut::new(&mut []),
                            IoSliceMut::new(&mut [0; 8]),
                        ])
                        .await
                })
            }),
            ("read of the owner", |a| {
                let mut a = a.clone();
                Box::pin(async move { a.read(&mut [0; 8]).await })
            }),
            ("read_with", |a| Box::pin(a.read_with(|mut s| s.read(&mut [0; 8])))),
            ("readable", |a| Box::pin(async move { a.readable().await.map(|()| 1) })),
            ("poll_readable", |a| Box::pin(poll_fn(move |cx| a.poll_readable(cx).map_ok(|()| 1)))),
            ("read_line", |a| {
                Box::pin(async move { BufReader::new(a).read_line(&mut String::new()).await })
            }),
        ];
        let writes: [(&str, Make); 6] = [
            ("write", |a| Box::pin(async move { { a }.write(&[7; 8]).await })),
            ("write_vectored", |a| {
                Box::pin(async move {
                    { a }.write_vectored(&[IoSlice::new(&[]), IoSlice::new(&[7; 8])]).await
                })
            }),
            ("write of the owner", |a| {
                let mut a = a.clone();
                Box::pin(async move { a.write(&[7; 8]).await })
            }),
            ("write_with", |a| Box::pin(a.write_with(|mut s| s.write(&[7; 8])))),
            ("writable", |a| Box::pin(async move { a.writable().await.map(|()| 1) })),
            ("poll_writable", |a| Box::pin(poll_fn(move |cx| a.poll_writable(cx).map_ok(|()| 1)))),
        ];
        block_on(async {
            for (name, op) in reads {
                // Writable all the time; then not even that.
                for full in [false, true] {
                    let (a, b) = pair();
                    let fill_up = || {
                        if full {
                            fill(a.get_ref());
                        }
                    };
                    let n =
                        waits_for(name, op(&a), fill_up, || b.get_ref().write_all(b"\n").unwrap())
                            .await;
                    assert_eq!(n, 1, "{name}");
                }
            }
            for (name, op) in writes {
                let (a, b) = pair();
                fill(a.get_ref());
                // Readable all the time.
                let n = waits_for(
                    name,
                    op(&a),
                    || b.get_ref().write_all(b"x").unwrap(),
                    || _ = drain(b.get_ref()),
                )
                .await;
                assert!(n > 0, "{name}");
            }
            let (reader, writer) = pipe();
            let n = waits_for(
                "pipe read",
                { &reader }.read(&mut [0; 8]),
                || {},
                || writer.get_ref().write_all(b"x").unwrap(),
            )
            .await;
            assert_eq!(n, 1);
            fill(writer.get_ref());
            let n = waits_for(
                "pipe write",
                { &writer }.write(b"xy"),
                || {},
                || _ = drain(reader.get_ref()),
            )
            .await;
            assert_eq!(n, 2);
        });
    });
}

#[test]
fn each_side_of_a_busy_socket_goes_on_when_its_own_direction_is_ready() {
    within(30, || {
        block_on(async {
            let (a, b) = pair();
            for round in 0..50 {
                fill(a.get_ref());
                let mut byte = [0];
                let (mut reader, mut writer) = (&a, &a);
                let mut reading = pin!(reader.read(&mut byte));
                let mut writing = pin!(writer.write(b"x"));
                // Either may come first.
                if round % 2 == 0 {
                    assert!(future::poll_once(reading.as_mut()).await.is_none());
                    assert!(future::poll_once(writing.as_mut()).await.is_none());
                } else {
                    assert!(future::poll_once(writing.as_mut()).await.is_none());
                    assert!(future::poll_once(reading.as_mut()).await.is_none());
                }
                if round % 4 < 2 {
                    drain(b.get_ref());
                    assert_eq!(writing.await.unwrap(), 1);
                    assert!(future::poll_once(reading.as_mut()).await.is_none());
                    b.get_ref().write_all(b"x").unwrap();
                    assert_eq!(reading.await.unwrap(), 1);
                } else {
                    b.get_ref().write_all(b"x").unwrap();
                    assert_eq!(reading.await.unwrap(), 1);
                    assert!(future::poll_once(writing.as_mut()).await.is_none());
                    drain(b.get_ref());
                    assert_eq!(writing.await.unwrap(), 1);
                }
            }
        });
    });
}

/// <https://github.com/smol-rs/smol/issues/161>
#[test]
fn a_reading_and_a_writing_task_on_one_handle_do_not_disarm_each_other() {
    within(30, || {
        for _ in 0..20 {
            let (a, b) = pair();
            fill(a.get_ref());
            let (reader, writer) = (a.clone(), a);
            let reading = spawn(async move { (&reader).read(&mut [0; 1]).await });
            let writing = spawn(async move { (&writer).write(b"x").await });
            block_on(async {
                Timer::after(MS).await;
                drain(b.get_ref());
                assert_eq!(writing.await.unwrap(), 1);
                b.get_ref().write_all(b"x").unwrap();
                assert_eq!(reading.await.unwrap(), 1);
            });
        }
    });
}

#[test]
fn an_operation_of_no_bytes_is_done_at_once() {
    within(10, || {
        block_on(async {
            let (mut a, mut b) = pair();
            assert_eq!(future::poll_once(a.read(&mut [])).await.unwrap().unwrap(), 0);
            assert_eq!(future::poll_once(a.read_vectored(&mut [])).await.unwrap().unwrap(), 0);
            assert_eq!(
                future::poll_once(a.read_vectored(&mut [IoSliceMut::new(&mut [])]))
                    .await
                    .unwrap()
                    .unwrap(),
                0
            );
            fill(a.get_ref());
            assert_eq!(future::poll_once(a.write(&[])).await.unwrap().unwrap(), 0);
            assert_eq!(future::poll_once(a.write_vectored(&[])).await.unwrap().unwrap(), 0);
            // And it is no end of file: there are bytes.
            assert!(b.read(&mut [0; 8]).await.unwrap() > 0);
        });
    });
}

#[test]
fn vectored_operations_use_all_their_buffers() {
    within(10, || {
        block_on(async {
            let (mut a, mut b) = pair();
            assert_eq!(
                a.write_vectored(&[IoSlice::new(b"abc"), IoSlice::new(b"defg")]).await.unwrap(),
                7
            );
            let (mut x, mut y) = ([0; 2], [0; 8]);
            assert_eq!(
                b.read_vectored(&mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)])
                    .await
                    .unwrap(),
                7
            );
            assert_eq!((&x, &y[..5]), (b"ab", &b"cdefg"[..]));
        });
    });
}

#[test]
fn read_with_and_write_with_repeat_what_would_block_and_pass_on_the_rest() {
    within(10, || {
        block_on(async {
            let (a, b) = pair();
            let calls = Cell::new(0);
            let counted = a.read_with(|mut stream| {
                calls.set(calls.get() + 1);
                stream.read(&mut [0; 8])
            });
            waits_for("read_with", counted, || {}, || b.get_ref().write_all(b"xyz").unwrap()).await;
            assert!((2..10).contains(&calls.get()), "called {} times", calls.get());

            let error = a.read_with(|_| Err::<(), _>(io::Error::other("mine"))).await.unwrap_err();
            assert_eq!(error.to_string(), "mine");
            let error = a
                .write_with(|_| Err::<(), _>(io::Error::from(ErrorKind::InvalidData)))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert_eq!(a.write_with(|stream| stream.peer_addr().map(|_| 5)).await.unwrap(), 5);

            // A panic in the closure is the caller's, and the handle survives it.
            let panicked = async { a.read_with(|_| -> io::Result<()> { panic!("mine") }).await };
            AssertUnwindSafe(panicked).catch_unwind().await.unwrap_err();
            (&b).write_all(b"x").await.unwrap();
            assert_eq!((&a).read(&mut [0; 2]).await.unwrap(), 1);
        });
    });
}

/// The news comes after the operation said `WouldBlock` and before the waiter is noted; the reactor tells each piece of news once.
#[test]
fn news_that_comes_while_an_operation_is_about_to_wait_is_not_lost() {
    within(20, || {
        for _ in 0..10 {
            let (a, b) = pair();
            let first = Cell::new(true);
            // Another thread sees the event, so that there is no second one.
            let reported = |happen: &dyn Fn(), write: bool| {
                thread::scope(|s| {
                    let waiting = Flag::new();
                    let seen = s.spawn({
                        let (waiting, a) = (waiting.clone(), &a);
                        move || {
                            block_on(async {
                                let mut ready: Pin<Box<dyn Future<Output = io::Result<()>>>> =
                                    match write {
                                        false => Box::pin(a.readable()),
                                        true => Box::pin(a.writable()),
                                    };
                                assert!(future::poll_once(ready.as_mut()).await.is_none());
                                waiting.set();
                                ready.await.unwrap();
                            });
                        }
                    });
                    waiting.wait_blocking();
                    happen();
                    seen.join().unwrap();
                });
            };
            let read = foreign_block_on(a.read_with(|mut stream| match stream.read(&mut [0; 8]) {
                Err(e) if first.replace(false) => {
                    reported(&|| b.get_ref().write_all(b"x").unwrap(), false);
                    Err(e)
                }
                result => result,
            }));
            assert_eq!(read.unwrap(), 1);
            first.set(true);
            fill(a.get_ref());
            let written = foreign_block_on(a.write_with(|mut stream| match stream.write(b"x") {
                Err(e) if first.replace(false) => {
                    reported(&|| _ = drain(b.get_ref()), true);
                    Err(e)
                }
                result => result,
            }));
            assert_eq!(written.unwrap(), 1);
        }
    });
}

/// The way many programs use `readable`: a loop around an operation of std.
#[test]
fn readable_waits_even_if_the_handle_was_drained_behind_its_back() {
    within(20, || {
        block_on(async {
            let (a, b) = pair();
            for _ in 0..20 {
                b.get_ref().write_all(b"xyz").unwrap();
                a.readable().await.unwrap();
                a.poll_readable_now().await;
                // Exactly what is there, so that std never says WouldBlock.
                a.get_ref().read_exact(&mut [0; 3]).unwrap();
                waits_for("readable", a.readable(), || {}, || b.get_ref().write_all(b"x").unwrap())
                    .await;
                let polled = poll_fn(|cx| a.poll_readable(cx));
                polled.await.unwrap();
                assert_eq!(drain(a.get_ref()), 1);
                let polled = poll_fn(|cx| a.poll_readable(cx));
                waits_for("poll_readable", polled, || {}, || b.get_ref().write_all(b"x").unwrap())
                    .await;
                assert_eq!(drain(a.get_ref()), 1);
                // The same for writing.
                a.writable().await.unwrap();
                fill(a.get_ref());
                waits_for("writable", a.writable(), || {}, || _ = drain(b.get_ref())).await;
                fill(a.get_ref());
                let polled = poll_fn(|cx| a.poll_writable(cx));
                waits_for("poll_writable", polled, || {}, || _ = drain(b.get_ref())).await;
                a.writable().await.unwrap();
            }
        });
    });
}

trait PollReadableNow {
    async fn poll_readable_now(&self);
}

impl PollReadableNow for Async<UnixStream> {
    /// What is ready must be ready at the first or the second look.
    async fn poll_readable_now(&self) {
        let mut looks = 0;
        poll_fn(|cx| {
            looks += 1;
            assert!(looks <= 3, "not ready at look {looks}");
            self.poll_readable(cx)
        })
        .await
        .unwrap();
    }
}

/// <https://github.com/smol-rs/async-io/issues/78>
#[test]
fn what_is_ready_is_found_ready_without_waiting_for_anything_else() {
    within(60, || {
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|s| {
            // Somebody else keeps the reactor turning.
            s.spawn(|| {
                block_on(async {
                    let (a, b) = pair();
                    while !stop.load(Ordering::Relaxed) {
                        (&a).write_all(b"x").await.unwrap();
                        (&b).read_exact(&mut [0; 1]).await.unwrap();
                        Timer::after(Duration::from_micros(50)).await;
                    }
                });
            });
            let rounds = 4_000;
            let (a, b) = pair();
            b.get_ref().write_all(b"x").unwrap();
            let mut polls = 0;
            foreign_block_on(async {
                for _ in 0..rounds {
                    for direction in 0..4 {
                        let mut op: Pin<Box<dyn Future<Output = io::Result<()>>>> = match direction
                        {
                            0 => Box::pin(a.readable()),
                            1 => Box::pin(a.writable()),
                            2 => Box::pin(poll_fn(|cx| a.poll_readable(cx))),
                            _ => Box::pin(poll_fn(|cx| a.poll_writable(cx))),
                        };
                        poll_fn(|cx| {
                            polls += 1;
                            op.as_mut().poll(cx)
                        })
                        .await
                        .unwrap();
                    }
                }
            });
            stop.store(true, Ordering::Relaxed);
            assert!(polls <= 2 * 4 * rounds, "{polls} polls for {} operations", 4 * rounds);
        });
    });
}

#[test]
fn a_reader_and_later_a_writer_of_other_tasks_are_both_woken() {
    within(10, || {
        let (a, b) = pair();
        fill(a.get_ref());
        let ((reader, reads), (writer, writes)) = (counting_waker(), counting_waker());
        assert!(a.poll_readable(&mut Context::from_waker(&reader)).is_pending());
        assert!(a.poll_writable(&mut Context::from_waker(&writer)).is_pending());
        drain(b.get_ref());
        b.get_ref().write_all(b"x").unwrap();
        block_on(async {
            // Somebody drives the reactor.
            while reads.count() == 0 || writes.count() == 0 {
                Timer::after(MS).await;
            }
        });
        assert!(a.poll_readable(&mut Context::from_waker(&reader)).is_ready());
        assert!(a.poll_writable(&mut Context::from_waker(&writer)).is_ready());
    });
}

// ---------- hang-ups ----------

#[test]
fn a_hang_up_reaches_whoever_waits() {
    within(20, || {
        block_on(async {
            // A writer parked on a full pipe learns that nobody will read.
            let (reader, writer) = pipe();
            fill(writer.get_ref());
            let mut writing = pin!(async { (&writer).write_all(b"x").await });
            assert!(future::poll_once(writing.as_mut()).await.is_none());
            drop(reader);
            assert_eq!(writing.await.unwrap_err().kind(), ErrorKind::BrokenPipe);

            // The same with `writable`, and a reader of std.
            let (reader, writer) = std_pipe();
            let writer = Async::new(writer).unwrap();
            fill(writer.get_ref());
            let mut writable = pin!(writer.writable());
            assert!(future::poll_once(writable.as_mut()).await.is_none());
            drop(reader);
            writable.await.unwrap();

            // A reader learns that nobody will write.
            let (reader, writer) = pipe();
            let mut reading = pin!(async { (&reader).read(&mut [0; 1]).await });
            let mut readable = pin!(reader.readable());
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            assert!(future::poll_once(readable.as_mut()).await.is_none());
            drop(writer);
            assert_eq!(reading.await.unwrap(), 0);
            readable.await.unwrap();

            // Both halves of a socket, waiting at once.
            let (a, b) = pair();
            fill(a.get_ref());
            let mut reading = pin!(async { (&a).read(&mut [0; 1]).await });
            let mut writing = pin!(async { (&a).write(b"x").await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            assert!(future::poll_once(writing.as_mut()).await.is_none());
            drop(b); // with unread data: a reset
            match reading.await {
                Ok(n) => assert_eq!(n, 0),
                Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
            }
            assert!(matches!(
                writing.await.unwrap_err().kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ));

            // The end of the other's writing alone.
            let (a, mut b) = pair();
            let mut reading = pin!(async { (&a).read(&mut [0; 1]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            b.close().await.unwrap();
            assert_eq!(reading.await.unwrap(), 0);
            (&a).write_all(b"x").await.unwrap();
            assert_eq!(b.read(&mut [0; 8]).await.unwrap(), 1);
        });
    });
}

/// Many more than one handle is leaked: nobody can take out of the kernel what nobody can name.
#[test]
fn handles_that_were_forgotten_cost_nothing_and_their_sockets_work() {
    fresh_process(30, &[], || {
        block_on(async {
            for _ in 0..200 {
                // Registered, with a waiter that is forgotten too, and with bytes that nobody reads.
                let (one, mut two) = pair();
                let mut readable = Box::pin({
                    let one = one.clone();
                    async move { one.readable().await }
                });
                assert!(future::poll_once(readable.as_mut()).await.is_none());
                std::mem::forget((readable, one));
                two.write_all(b"x").await.unwrap();
                // A number that is free again, a socket that was forgotten while it was new.
                let (three, four) = pair();
                std::mem::forget(three);
                drop(four);
            }
            let spins = turns(async || Timer::after(Duration::from_millis(20)).await).await;
            assert!(spins < SPINS, "polled {spins} times in 200 ms");
            let (mut one, mut two) = pair();
            future::try_zip(one.write_all(b"x"), two.read_exact(&mut [0])).await.unwrap();
        });
        #[cfg(target_os = "linux")]
        {
            let (used, wakes) = common::idle_cost(Duration::from_millis(500));
            assert!(used < Duration::from_millis(50) && wakes < 10, "{used:?}, {wakes} wake-ups");
        }
    });
}

/// What was there before anybody asked is told to each who asks, once at least.
#[test]
fn a_hang_up_that_is_there_at_the_first_call_is_reported() {
    async fn soon(name: &str, wait: impl Future<Output = io::Result<()>>) {
        let told = timeout(Duration::from_secs(5), wait).await;
        told.unwrap_or_else(|_| panic!("{name}: nobody is told")).unwrap();
    }
    fn gone() -> (Async<File>, Async<File>, Async<UnixStream>) {
        let ((reader, _), (_, writer)) = (std_pipe(), std_pipe());
        let (stream, _) = UnixStream::pair().unwrap();
        (Async::new(reader).unwrap(), Async::new(writer).unwrap(), Async::new(stream).unwrap())
    }
    within(60, || {
        block_on(async {
            let (reader, writer, stream) = gone();
            soon("the reader of a pipe", reader.readable()).await;
            soon("the writer of a pipe", writer.writable()).await;
            soon("a stream", stream.readable()).await;
            let (_, writer, stream) = gone();
            soon("the writer of a pipe that only looks", writer.readable()).await;
            soon("a stream that writes", stream.writable()).await;
            // Several who ask, one after the other, on handles of their own and on one.
            let (reader, writer, stream) = gone();
            for _ in 0..3 {
                let (reader, writer, stream) = (reader.clone(), writer.clone(), stream.clone());
                spawn(async move {
                    soon("a task that reads", reader.readable()).await;
                    soon("a task that writes", writer.writable()).await;
                    soon("a task with a stream", stream.readable()).await;
                })
                .await;
            }
            // By hand, then by the future.
            let (reader, writer, stream) = gone();
            soon("poll_readable", poll_fn(|cx| reader.poll_readable(cx))).await;
            soon("poll_writable", poll_fn(|cx| writer.poll_writable(cx))).await;
            soon("poll_readable", poll_fn(|cx| stream.poll_readable(cx))).await;
            assert_eq!((&reader).read(&mut [0; 1]).await.unwrap(), 0);
            assert_eq!((&stream).read(&mut [0; 1]).await.unwrap(), 0);
            assert!((&writer).write(b"x").await.is_err());
            // It came while nobody waited, after a wait that was given up.
            let (reader, writer) = pipe();
            let (one, two) = pair();
            fill(writer.get_ref());
            drain(reader.get_ref());
            assert!(future::poll_once(reader.readable()).await.is_none());
            assert!(future::poll_once(one.readable()).await.is_none());
            drop((writer, two));
            Timer::after(Duration::from_millis(5)).await; // others use the reactor
            soon("the reader", reader.readable()).await;
            soon("the stream", one.readable()).await;
            let (reader, writer) = pipe();
            fill(writer.get_ref());
            assert!(future::poll_once(writer.writable()).await.is_none());
            drop(reader);
            Timer::after(Duration::from_millis(5)).await;
            soon("the writer", writer.writable()).await;
        });
    });
}

// ---------- conditions that stay ----------

/// How often `step` came to its end in 200 ms, or was polled, if that is more. Others get their turn meanwhile.
async fn turns<T>(mut step: impl AsyncFnMut() -> T) -> usize {
    let (turns, polls) = (Cell::new(0), Cell::new(0));
    let mut going_round = pin!(async {
        loop {
            step().await;
            turns.set(turns.get() + 1);
            // Some loops end without ever being pending.
            future::yield_now().await;
        }
    });
    let counting = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        going_round.as_mut().poll(cx)
    });
    let enough = common::sleep(Duration::from_millis(200));
    future::or(enough, counting).await;
    usize::max(turns.get(), polls.get())
}

/// More turns than this in 200 ms are a loop that spins.
const SPINS: usize = 60;

/// A socket with an error in its queue of errors, where it stays, and a friend that sends to it.
#[cfg(target_os = "linux")]
fn socket_with_an_error_that_stays() -> (Async<UdpSocket>, UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt::Ipv4RecvErr};
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    setsockopt(&socket, Ipv4RecvErr, &true).unwrap();
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    socket.send_to(b"is anybody there?", nobody).unwrap();
    let friend = UdpSocket::bind("127.0.0.1:0").unwrap();
    friend.connect(socket.local_addr().unwrap()).unwrap();
    (Async::new(socket).unwrap(), friend)
}

/// poll(2) says POLLERR as long as there is something in the queue of errors.
#[cfg(target_os = "linux")]
#[cfg(not(polling_test_poll_backend))] // each look is news there
#[test]
fn a_queue_of_errors_that_nobody_reads_makes_no_reader_spin() {
    within(60, || {
        type Wait = fn(&Async<UdpSocket>) -> Pin<Box<dyn Future<Output = bool> + '_>>;
        let ways: [(&str, Wait); 5] = [
            ("readable", |s| {
                Box::pin(async {
                    s.readable().await.unwrap();
                    s.get_ref().recv_from(&mut [0; 8]).is_ok()
                })
            }),
            ("poll_readable", |s| {
                Box::pin(async {
                    poll_fn(|cx| s.poll_readable(cx)).await.unwrap();
                    s.get_ref().recv_from(&mut [0; 8]).is_ok()
                })
            }),
            ("recv_from", |s| Box::pin(async { s.recv_from(&mut [0; 8]).await.is_ok() })),
            ("read_with", |s| {
                Box::pin(async { s.read_with(|s| s.recv(&mut [0; 8])).await.is_ok() })
            }),
            ("both directions", |s| {
                Box::pin(async {
                    s.writable().await.unwrap();
                    s.readable().await.unwrap();
                    s.get_ref().recv_from(&mut [0; 8]).is_ok()
                })
            }),
        ];
        for (name, way) in ways {
            block_on(async {
                let (socket, friend) = socket_with_an_error_that_stays();
                for round in 0..2 {
                    let turns = turns(async || assert!(!way(&socket).await, "{name}")).await;
                    assert!(turns < SPINS, "{name}, round {round}: {turns} turns in 200 ms");
                    // And the next news is seen, whether somebody waits for it already or not.
                    for waits in [false, true] {
                        let mut receiving = pin!(async { while !way(&socket).await {} });
                        if waits {
                            assert!(future::poll_once(receiving.as_mut()).await.is_none());
                        }
                        friend.send(b"here").unwrap();
                        let received = timeout(Duration::from_secs(5), receiving).await;
                        assert!(received.is_ok(), "{name}, round {round}: a datagram is not seen");
                    }
                }
            });
        }
    });
}

/// Like an error that stays, but of a stream, and nothing is wrong with it: the kernel says when each byte was sent.
#[cfg(target_os = "linux")]
#[cfg(not(polling_test_poll_backend))] // each look is news there
#[test]
fn stamps_of_sent_bytes_that_nobody_reads_make_no_reader_spin() {
    use nix::sys::socket::{TimestampingFlag, setsockopt, sockopt::Timestamping};
    within(60, || {
        block_on(async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut peer = listener.accept().unwrap().0;
            let flags = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE
                | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
            setsockopt(&stream, Timestamping, &flags).unwrap();
            let stream = Async::new(stream).unwrap();
            for _ in 0..3 {
                (&stream).write_all(b"ping").await.unwrap();
                peer.read_exact(&mut [0; 4]).unwrap();
                let spins = turns(async || (&stream).read(&mut [0; 4]).await.unwrap()).await;
                assert!(spins < SPINS, "a read was polled {spins} times in 200 ms");
                let spins = turns(async || {
                    stream.readable().await.unwrap();
                    stream.get_ref().read(&mut [0; 4]).unwrap_err()
                })
                .await;
                assert!(spins < SPINS, "`readable` came {spins} times in 200 ms");
                let mut reading = pin!(async { (&stream).read_exact(&mut [0; 4]).await });
                assert!(future::poll_once(reading.as_mut()).await.is_none());
                peer.write_all(b"pong").unwrap();
                timeout(Duration::from_secs(5), reading).await.expect("not seen").unwrap();
            }
        });
    });
}

/// Those who ask again and again, and never read or write: the answer is no news to them.
#[cfg(target_os = "linux")]
#[cfg(not(polling_test_poll_backend))] // each look is news there
#[test]
fn a_hang_up_that_stays_is_news_once() {
    within(60, || {
        block_on(async {
            let (reader, writer) = std_pipe();
            let writer = Async::new(writer).unwrap();
            drop(reader);
            writer.readable().await.unwrap();
            let turns_of_writer = turns(async || writer.readable().await.unwrap()).await;
            assert!(turns_of_writer < SPINS, "the writer: {turns_of_writer} turns in 200 ms");
            assert!((&writer).write(b"x").await.is_err());
        });
    });
}

/// The reader of a FIFO sees the end of a writer, and the next one. (In between, poll(2) says that there is
/// an end to be read, as often as it is asked, and so does `readable`.)
#[cfg(target_os = "linux")]
#[test]
fn a_reader_of_a_fifo_sees_the_end_of_one_writer_and_the_bytes_of_the_next() {
    within(60, || {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("fifo");
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            let open = |write: bool| {
                use std::os::unix::fs::OpenOptionsExt;
                let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
                let mut options = std::fs::OpenOptions::new();
                options.read(!write).write(write).custom_flags(nonblocking).open(&path).unwrap()
            };
            let reader = Async::new(open(false)).unwrap();
            for _ in 0..3 {
                let mut writer = open(true);
                assert!(future::poll_once(reader.readable()).await.is_none());
                drop(writer);
                reader.readable().await.unwrap();
                assert_eq!(reader.get_ref().read(&mut [0; 1]).unwrap(), 0);
                let mut readable = pin!(async {
                    while reader.get_ref().read(&mut [0; 1]).ok() != Some(1) {
                        reader.readable().await.unwrap();
                    }
                });
                assert!(future::poll_once(readable.as_mut()).await.is_none());
                writer = open(true);
                writer.write_all(b"x").unwrap();
                timeout(Duration::from_secs(5), readable).await.expect("the next writer");
            }
        });
    });
}

/// `Async::<File>::from` registers nothing, so that no event tells when a pipe has bytes. The user's own operation is tried
/// again all the same, and not in a circle.
#[cfg(unix)]
#[test]
fn an_operation_on_a_pipe_taken_for_a_regular_file_is_tried_again_while_it_would_block() {
    within(60, || {
        block_on(async {
            let (reader, mut writer) = std_pipe();
            rustix::io::ioctl_fionbio(&reader, true).unwrap();
            let file = Async::from(std::fs::File::from(std::os::fd::OwnedFd::from(reader)));
            let read = || file.read_with(|mut file| file.read(&mut [0; 2]));
            let turns = turns(read).await;
            assert!(turns < 1000, "{turns} turns in 200 ms");
            writer.write_all(b"x").unwrap();
            assert_eq!(read().await.unwrap(), 1);
            drop(writer);
            assert_eq!(read().await.unwrap(), 0);
        });
    });
}

/// Some sockets say that they can be read, and then that they cannot: only the answer of the operation counts.
#[cfg(target_os = "linux")]
#[cfg(not(polling_test_poll_backend))] // each look is news there
#[test]
fn a_socket_that_claims_to_be_readable_and_is_not_makes_no_operation_spin() {
    within(60, || {
        block_on(async {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(socket.local_addr().unwrap()).unwrap();
            let socket = Async::new(socket).unwrap();
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
            let nothing = socket.get_ref().recv(&mut [0; 1]);
            if nothing.as_ref().err().map(io::Error::kind) == Some(ErrorKind::WouldBlock) {
                let spins = turns(async || socket.recv(&mut [0; 1]).await).await;
                assert!(spins < SPINS, "recv was polled {spins} times in 200 ms");
                let spins = turns(async || socket.read_with(|s| s.recv(&mut [0; 1])).await).await;
                assert!(spins < SPINS, "read_with was polled {spins} times in 200 ms");
            }
        });
    });
}

/// The kernel says that the socket can be written to, but there is no room at this receiver; and it has no news when there is.
#[cfg(target_os = "linux")]
#[test]
fn a_datagram_for_a_receiver_that_is_full_is_sent_when_there_is_room() {
    within(60, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receiver");
        let receiver = UnixDatagram::bind(&path).unwrap();
        block_on(async {
            let sender = Async::<UnixDatagram>::unbound().unwrap();
            for _ in 0..3 {
                while sender.get_ref().send_to(b"x", &path).is_ok() {}
                let mut sending = pin!(sender.send_to(b"y", &path));
                assert!(future::poll_once(sending.as_mut()).await.is_none());
                let spins = turns(async || sending.as_mut().await).await;
                println!("polled {spins} times in 200 ms");
                receiver.recv(&mut [0; 1]).unwrap();
                let sent = timeout(Duration::from_secs(5), sending).await;
                assert_eq!(sent.expect("there is room, but nobody is told").unwrap(), 1);
            }
        });
    });
}

#[test]
fn close_ends_the_writing_half_and_is_no_error_on_a_dead_stream() {
    within(10, || {
        block_on(async {
            let (mut a, mut b) = pair();
            a.write_all(b"last").await.unwrap();
            a.flush().await.unwrap();
            a.close().await.unwrap();
            let mut rest = Vec::new();
            b.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"last");
            assert!(a.write(b"x").await.is_err());
            // The other half is open.
            b.write_all(b"answer").await.unwrap();
            drop(b);
            assert_eq!(a.read(&mut [0; 16]).await.unwrap(), 6);
            a.close().await.unwrap();
        });
    });
}

// ---------- many waiters ----------

#[test]
fn all_who_wait_on_one_handle_get_their_turn() {
    within(30, || {
        for n in [2, 10, 100] {
            let (a, b) = pair();
            let mut readers: Vec<_> = (0..n)
                .map(|i| {
                    let mut reader = a.clone();
                    let task = async move { reader.read_exact(&mut [0; 1]).await.unwrap() };
                    if i % 2 == 0 { spawn(task) } else { spawn_local(task) }
                })
                .collect();
            block_on(async {
                for reader in &mut readers {
                    let _ = future::poll_once(reader).await;
                }
                for _ in 0..n {
                    (&b).write_all(b"x").await.unwrap();
                }
                for reader in readers {
                    reader.await;
                }
            });
        }
    });
}

#[test]
fn one_event_wakes_all_who_asked_whether_the_handle_is_ready() {
    within(30, || {
        block_on(async {
            let (a, b) = pair();
            let mut waiters: Vec<_> = (0..10)
                .map(|i| {
                    let a = a.clone();
                    let wait: Pin<Box<dyn Future<Output = io::Result<()>>>> = match i % 2 {
                        0 => Box::pin(async move { a.readable().await }),
                        _ => Box::pin(poll_fn(move |cx| a.poll_readable(cx))),
                    };
                    spawn_local(wait)
                })
                .collect();
            spawn_local(async {}).await;
            for waiter in &mut waiters {
                assert!(future::poll_once(waiter).await.is_none());
            }
            (&b).write_all(b"x").await.unwrap();
            for waiter in waiters {
                waiter.await.unwrap();
            }
            // Nobody took the byte.
            assert_eq!((&a).read(&mut [0; 2]).await.unwrap(), 1);
        });
    });
}

#[test]
fn readers_that_compete_for_bytes_never_see_would_block_and_miss_none() {
    within(60, || {
        let (a, mut b) = pair();
        let seen = Arc::new(AtomicUsize::new(0));
        const BYTES: usize = 4_000;
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (mut a, seen) = (a.clone(), seen.clone());
                spawn(async move {
                    while a.read(&mut [0; 1]).await.unwrap() == 1 {
                        seen.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        block_on(async {
            let mut left = BYTES;
            while left > 0 {
                let burst = fastrand::usize(1..=left.min(20));
                b.write_all(&vec![1; burst]).await.unwrap();
                left -= burst;
                if fastrand::bool() {
                    future::yield_now().await;
                }
            }
            b.close().await.unwrap();
            for reader in readers {
                reader.await;
            }
        });
        assert_eq!(seen.load(Ordering::SeqCst), BYTES);
    });
}

/// <https://github.com/smol-rs/async-io/issues/3>
#[cfg(target_os = "linux")]
#[test]
fn idle_waiters_cost_nothing_however_many_share_a_handle() {
    fresh_process(30, &[], || {
        let (polled, stop) = (Flag::new(), Flag::new());
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async {
                    let (a, _b) = pair();
                    let (_reader, writer) = pipe();
                    fill(writer.get_ref());
                    let tcp = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
                    let udp = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
                    let child = Async::<std::process::Child>::spawn(
                        std::process::Command::new("sleep").arg("100"),
                    )
                    .unwrap();
                    let mut tasks = Vec::new();
                    for i in 0..10 {
                        let (mut a, mut writer, tcp, udp, child) =
                            (a.clone(), writer.clone(), tcp.clone(), udp.clone(), child.clone());
                        let a2 = a.clone();
                        let ops: Vec<Pin<Box<dyn Future<Output = bool> + Send>>> = vec![
                            Box::pin(async move { a.read(&mut [0; 1]).await.is_ok() }),
                            Box::pin(async move { a2.readable().await.is_ok() }),
                            Box::pin(async move { writer.write(b"x").await.is_ok() }),
                            Box::pin(async move { tcp.accept().await.is_ok() }),
                            Box::pin(async move { udp.recv_from(&mut [0; 1]).await.is_ok() }),
                            Box::pin(async move { child.status().await.is_ok() }),
                        ];
                        tasks.extend(
                            ops.into_iter()
                                .map(|op| if i % 2 == 0 { spawn(op) } else { spawn_local(op) }),
                        );
                    }
                    spawn_local(async {}).await;
                    for task in &mut tasks {
                        assert!(future::poll_once(task).await.is_none());
                    }
                    polled.set();
                    stop.wait().await;
                    child.kill().unwrap();
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

#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_idle_sockets_cost_nothing() {
    fresh_process(60, &[], || {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        // The fallback takes quadratic time to register so many.
        let sockets = if cfg!(polling_test_poll_backend) { 1_000 } else { 10_000 };
        let sockets = maximum.map_or(sockets, |n| n.saturating_sub(100).min(sockets));
        let (polled, stop) = (Flag::new(), Flag::new());
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async {
                    let tasks: Vec<_> = (0..sockets / 2)
                        .map(|i| {
                            let (a, b) = pair();
                            let idle = async move {
                                (&a).read(&mut [0; 1]).or((&b).read(&mut [0; 1])).await.unwrap();
                            };
                            if i % 2 == 0 { spawn(idle) } else { spawn_local(idle) }
                        })
                        .collect();
                    let mut far = Timer::after(HOUR);
                    assert!(future::poll_once(&mut far).await.is_none());
                    spawn_local(async {}).await;
                    spawn(async {}).await;
                    polled.set();
                    stop.wait().await;
                    drop(tasks);
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

// ---------- what was given up is gone ----------

#[test]
fn waiters_that_gave_up_are_forgotten_and_not_woken() {
    within(20, || {
        block_on(async {
            let (a, b) = pair();
            let (waker, wakes) = counting_waker();
            for _ in 0..30 {
                let mut readable = pin!(a.readable());
                assert!(readable.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                let mut reading = pin!(a.read_with(|mut s| s.read(&mut [0; 1])));
                assert!(reading.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
            drop(waker);
            assert_eq!(Arc::strong_count(&wakes), 1, "a waker was kept");
            (&b).write_all(b"x").await.unwrap();
            a.readable().await.unwrap();
            assert_eq!(wakes.count(), 0);
        });
    });
}

#[test]
fn a_dropped_handle_drops_the_wakers_of_its_waiters() {
    within(10, || {
        let (waker, wakes) = counting_waker();
        let (a, _b) = pair();
        fill(a.get_ref());
        let mut cx = Context::from_waker(&waker);
        assert!(a.poll_readable(&mut cx).is_pending());
        assert!(a.poll_writable(&mut cx).is_pending());
        assert!(Pin::new(&mut &a).poll_read(&mut cx, &mut [0; 1]).is_pending());
        drop(a);
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
    });
}

#[test]
fn waiters_that_gave_up_hold_no_memory() {
    fresh_process(60, &[], || {
        let (a, _b) = pair();
        let churn = || {
            let step = || {
                // Each with a waker of its own, as tasks have.
                let (waker, _) = counting_waker();
                let mut cx = Context::from_waker(&waker);
                assert!(pin!(a.readable()).poll(&mut cx).is_pending());
                assert!(pin!(a.read_with(|mut s| s.read(&mut [0; 1]))).poll(&mut cx).is_pending());
                // These have no way of saying that they gave up.
                assert!(a.poll_readable(&mut cx).is_pending());
                assert!(Pin::new(&mut &a).poll_read(&mut cx, &mut [0; 1]).is_pending());
            };
            (0..1_000).for_each(|_| step());
            let before = live_bytes();
            let mut most = 0;
            for _ in 0..100 {
                (0..1_000).for_each(|_| step());
                most = most.max(live_bytes() - before);
            }
            assert!(most < 1024 * 1024, "{most} bytes are still held");
        };
        churn(); // nobody drives the reactor
        let stop = Flag::new();
        thread::scope(|s| {
            s.spawn(|| {
                block_on(async { stop.wait().or(async { _ = Timer::after(HOUR).await }).await })
            });
            churn();
            stop.set();
        });
    });
}

#[test]
fn handles_that_come_and_go_hold_no_memory() {
    fresh_process(60, &[], || {
        let round = || {
            block_on(async {
                let (a, b) = pair();
                assert!(future::poll_once((&a).read(&mut [0; 1])).await.is_none());
                (&b).write_all(b"x").await.unwrap();
                (&a).read(&mut [0; 1]).await.unwrap();
            });
        };
        (0..100).for_each(|_| round());
        let before = live_bytes();
        (0..5_000).for_each(|_| round());
        let grown = live_bytes() - before;
        assert!(grown < 256 * 1024, "{grown} bytes are still held");
    });
}

#[test]
fn a_read_that_was_given_up_has_taken_nothing() {
    within(60, || {
        let (a, mut b) = pair();
        const BYTES: usize = 20_000;
        let writing = spawn(async move {
            let data: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
            for chunk in data.chunks(7) {
                b.write_all(chunk).await.unwrap();
                if fastrand::u8(0..8) == 0 {
                    Timer::after(Duration::from_micros(fastrand::u64(0..200))).await;
                }
            }
        });
        block_on(async {
            let mut received = Vec::new();
            let mut given_up = 0;
            loop {
                let mut chunk = [0; 16];
                let patience = Duration::from_micros(fastrand::u64(0..200));
                match timeout(patience, (&a).read(&mut chunk)).await {
                    Ok(Ok(0)) => break,
                    Ok(Ok(n)) => received.extend_from_slice(&chunk[..n]),
                    Ok(Err(e)) => panic!("{e}"),
                    Err(_) => given_up += 1,
                }
            }
            writing.await;
            assert!(
                received.len() == BYTES
                    && received.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8)
            );
            assert!(given_up > 0);
        });
    });
}

// ---------- fairness ----------

type Forever = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Operations that are ready each time.
fn always_ready() -> Vec<(&'static str, Forever)> {
    let at_end = || pair().0;
    let full_of_bytes = || {
        let (a, b) = pair();
        b.get_ref().write_all(b"x").unwrap();
        (a, b)
    };
    vec![
        ("read at the end of file", {
            let mut a = at_end();
            Box::pin(async move { while a.read(&mut [0; 8]).await.unwrap() == 0 {} })
        }),
        ("readable", {
            let ab = full_of_bytes();
            Box::pin(async move { while ab.0.readable().await.is_ok() {} })
        }),
        ("writable", {
            let ab = pair();
            Box::pin(async move { while ab.0.writable().await.is_ok() {} })
        }),
        ("poll_readable", {
            let ab = full_of_bytes();
            Box::pin(async move { while poll_fn(|cx| ab.0.poll_readable(cx)).await.is_ok() {} })
        }),
        ("poll_writable", {
            let ab = pair();
            Box::pin(async move { while poll_fn(|cx| ab.0.poll_writable(cx)).await.is_ok() {} })
        }),
        ("read_with", {
            let ab = pair();
            Box::pin(async move { while ab.0.read_with(|_| Ok(true)).await.unwrap() {} })
        }),
        ("write_with", {
            let ab = pair();
            Box::pin(async move { while ab.0.write_with(|_| Ok(true)).await.unwrap() {} })
        }),
        ("an error each time", {
            let ab = pair();
            Box::pin(async move {
                while ab.0.read_with(|_| Err::<(), _>(io::Error::other("again"))).await.is_err() {}
            })
        }),
        ("a write to itself", {
            let (mut a, mut b) = pair();
            Box::pin(async move {
                loop {
                    a.write_all(b"x").await.unwrap();
                    b.read_exact(&mut [0; 1]).await.unwrap();
                }
            })
        }),
        ("peek", {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let b = Async::new(listener.accept().unwrap().0).unwrap();
            a.write_all(b"x").unwrap();
            Box::pin(async move {
                let _a = a;
                while b.peek(&mut [0; 1]).await.unwrap() == 1 {}
            })
        }),
        ("a datagram socket that writes to itself", {
            let udp = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
            let own = udp.get_ref().local_addr().unwrap();
            Box::pin(async move {
                loop {
                    udp.send_to(b"x", own).await.unwrap();
                    udp.recv_from(&mut [0; 1]).await.unwrap();
                }
            })
        }),
        ("an end of file on a stream of bytes", {
            let a = at_end();
            Box::pin(async move { while BufReader::new(&a).bytes().next().await.is_none() {} })
        }),
    ]
}

#[test]
fn an_operation_that_is_always_ready_does_not_starve_the_thread() {
    within(60, || {
        for (_name, forever) in always_ready() {
            block_on(async {
                let _forever = spawn_local(forever);
                let brother = spawn_local(async {
                    for _ in 0..10 {
                        future::yield_now().await;
                    }
                });
                let (a, b) = pair();
                let echo = spawn_local(async move {
                    (&b).read_exact(&mut [0; 1]).await.unwrap();
                    (&b).write_all(b"y").await.unwrap();
                });
                Timer::after(MS).await;
                brother.await;
                (&a).write_all(b"x").await.unwrap();
                (&a).read_exact(&mut [0; 1]).await.unwrap();
                echo.await;
                Timer::after(MS).await;
            });
        }
    });
}

#[test]
fn an_operation_that_is_always_ready_lets_its_own_task_time_out() {
    within(60, || {
        for (name, forever) in always_ready() {
            assert!(block_on(timeout(2 * MS, forever)).is_err(), "{name}");
        }
        for (name, forever) in always_ready() {
            assert!(foreign_block_on(timeout(2 * MS, forever)).is_err(), "{name}");
        }
    });
}

#[test]
fn an_operation_that_is_always_ready_does_not_starve_its_only_worker() {
    fresh_process(60, &[("SMOL_THREADS", "1")], || {
        block_on(async {
            let forever: Vec<_> =
                always_ready().into_iter().map(|(_, forever)| spawn(forever)).collect();
            let (a, b) = pair();
            let _echo = spawn(async move {
                loop {
                    (&b).read_exact(&mut [0; 1]).await.unwrap();
                    (&b).write_all(b"y").await.unwrap();
                }
            });
            for _ in 0..5 {
                spawn(Timer::after(MS)).await;
                spawn(async {}).await;
                (&a).write_all(b"x").await.unwrap();
                (&a).read_exact(&mut [0; 1]).await.unwrap();
            }
            drop(forever);
        });
    });
}

/// A budget that is used up must not hang somebody else's `block_on`. <https://github.com/tokio-rs/tokio/issues/2376>
#[test]
fn an_operation_that_is_always_ready_goes_on_under_a_foreign_block_on() {
    within(30, || {
        foreign_block_on(async {
            let (a, b) = pair();
            for _ in 0..10_000 {
                (&a).write_all(b"x").await.unwrap();
                (&b).read_exact(&mut [0; 1]).await.unwrap();
            }
        });
    });
}

#[test]
fn two_local_tasks_with_ready_sockets_make_progress_alike() {
    within(30, || {
        let progress = [Cell::new(0u64), Cell::new(0u64)];
        let executor = LocalExecutor::new();
        let progress = std::rc::Rc::new(progress);
        let tasks: Vec<_> = (0..2)
            .map(|i| {
                let progress = progress.clone();
                let mut a = pair().0;
                executor.spawn(async move {
                    loop {
                        a.read(&mut [0; 1]).await.unwrap();
                        progress[i].set(progress[i].get() + 1);
                    }
                })
            })
            .collect();
        block_on(executor.run(async {
            while progress[0].get() + progress[1].get() < 20_000 {
                future::yield_now().await;
            }
        }));
        drop(tasks);
        let (x, y) = (progress[0].get(), progress[1].get());
        assert!(x > y / 4 && y > x / 4, "{x} and {y}");
    });
}

// ---------- whoever drives the reactor may leave ----------

#[test]
fn io_works_under_a_foreign_block_on() {
    within(10, || {
        foreign_block_on(async {
            let (a, b) = pair();
            for _ in 0..20 {
                let mut readable = pin!(a.readable());
                assert!(future::poll_once(readable.as_mut()).await.is_none());
                let writer = b.clone();
                let thread = thread::spawn(move || writer.get_ref().write_all(b"x").unwrap());
                readable.await.unwrap();
                (&a).read_exact(&mut [0; 1]).await.unwrap();
                thread.join().unwrap();
            }
        });
    });
}

/// <https://github.com/smol-rs/async-io/pull/59>
#[test]
fn threads_that_come_and_go_hand_the_reactor_on() {
    within(60, || {
        let (waiting, peer) = pair();
        thread::scope(|s| {
            // One that waits all the time, without a block_on of ours.
            let waiter = s.spawn(move || {
                foreign_block_on(async {
                    for _ in 0..100 {
                        (&waiting).read_exact(&mut [0; 1]).await.unwrap();
                        (&waiting).write_all(b"x").await.unwrap();
                    }
                });
            });
            for seed in 0..8 {
                s.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    let (a, b) = pair();
                    for _ in 0..150 {
                        let duration = Duration::from_micros(random.u64(0..3_000));
                        let work = async {
                            match random.u8(0..3) {
                                0 => _ = Timer::after(duration).await,
                                1 => {
                                    let echo = spawn({
                                        let mut b = b.clone();
                                        async move {
                                            b.read_exact(&mut [0; 1]).await.unwrap();
                                            b.write_all(b"y").await.unwrap();
                                        }
                                    });
                                    (&a).write_all(b"x").await.unwrap();
                                    (&a).read_exact(&mut [0; 1]).await.unwrap();
                                    echo.await;
                                }
                                _ => drop(timeout(duration, (&a).read(&mut [0; 1])).await),
                            }
                        };
                        if seed < 6 { block_on(work) } else { foreign_block_on(work) }
                    }
                });
            }
            for _ in 0..100 {
                peer.get_ref().set_nonblocking(false).unwrap();
                peer.get_ref().write_all(b"x").unwrap();
                peer.get_ref().read_exact(&mut [0; 1]).unwrap();
            }
            waiter.join().unwrap();
        });
    });
}

#[test]
fn a_task_waiting_for_io_is_served_while_its_block_on_is_over() {
    within(30, || {
        for _ in 0..50 {
            let (mut a, b) = pair();
            let task = spawn(async move { a.read(&mut [0; 1]).await.unwrap() });
            block_on(Timer::after(Duration::from_micros(100))); // this thread may have been in the poller
            let thread = thread::spawn(move || b.get_ref().write_all(b"x").unwrap());
            assert_eq!(foreign_block_on(task), 1);
            thread.join().unwrap();
        }
    });
}

#[test]
fn waiting_futures_move_between_threads_and_runtimes() {
    within(30, || {
        let (mut a, b) = pair();
        let mut reading = Box::pin(async move { a.read(&mut [0; 1]).await.unwrap() });
        for _ in 0..20 {
            assert!(block_on(future::poll_once(reading.as_mut())).is_none());
            reading = thread::spawn(move || {
                assert!(foreign_block_on(future::poll_once(reading.as_mut())).is_none());
                reading
            })
            .join()
            .unwrap();
        }
        let task = spawn(reading);
        block_on(async {
            (&b).write_all(b"x").await.unwrap();
            assert_eq!(task.await, 1);
        });
    });
}

// ---------- code of users in the worst of places ----------

/// <https://github.com/tokio-rs/tokio/issues/5578>
#[test]
fn a_waker_may_use_handles_and_timers_when_it_is_woken_or_dropped() {
    within(20, || {
        let calls = Arc::new(AtomicUsize::new(0));
        let (shared, shared_peer) = pair();
        let shared_hook = shared.clone();
        let hook = {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
                let mut cx = Context::from_waker(Waker::noop());
                let (a, b) = pair();
                assert!(a.poll_readable(&mut cx).is_pending());
                assert!(Pin::new(&mut Timer::after(HOUR)).poll(&mut cx).is_pending());
                drop((a, b));
                // The very handle whose waiters are woken.
                drop(shared_hook.poll_readable(&mut cx));
                drop(shared_hook.clone());
                let mut waiting = pin!(shared_hook.readable());
                drop(waiting.as_mut().poll(&mut cx));
                spawn(async {}).detach();
            }
        };
        let waker = || hook_waker(hook.clone());
        // Given up, replaced, dropped with the handle.
        assert!(pin!(shared.readable()).poll(&mut Context::from_waker(&waker())).is_pending());
        assert!(shared.poll_readable(&mut Context::from_waker(&waker())).is_pending());
        assert!(shared.poll_readable(&mut Context::from_waker(&waker())).is_pending());
        {
            let (a, _b) = pair();
            assert!(a.poll_readable(&mut Context::from_waker(&waker())).is_pending());
        }
        // Woken by the reactor, with others on the same handle.
        let mut first = pin!(shared.readable());
        let mut second = pin!(shared.readable());
        assert!(first.as_mut().poll(&mut Context::from_waker(&waker())).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(&waker())).is_pending());
        let before = calls.load(Ordering::SeqCst);
        shared_peer.get_ref().write_all(b"x").unwrap();
        block_on(async {
            first.await.unwrap();
            second.await.unwrap();
            while calls.load(Ordering::SeqCst) == before {
                Timer::after(MS).await;
            }
        });
        // Woken by the end of the handle's last clone elsewhere.
        drop(shared_peer);
        block_on(shared.readable()).unwrap();
    });
}

#[test]
fn a_waker_that_panics_does_not_take_the_others_with_it() {
    fresh_process(20, &[], || {
        for _ in 0..5 {
            let (a, b) = pair();
            let armed = Arc::new(AtomicBool::new(true));
            let bomb = hook_waker({
                let armed = armed.clone();
                move || {
                    if armed.swap(false, Ordering::SeqCst) {
                        panic!("the waker of somebody else");
                    }
                }
            });
            let (waker, wakes) = counting_waker();
            let mut waiters: Vec<_> = (0..9).map(|_| Box::pin(a.readable())).collect();
            for (i, waiter) in waiters.iter_mut().enumerate() {
                let waker = if i == 4 { &bomb } else { &waker };
                assert!(waiter.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
            }
            b.get_ref().write_all(b"x").unwrap();
            // The panic may come out here, or be swallowed; in any case the others are woken, and the reactor goes on.
            let _ = catch_unwind(|| block_on(Timer::after(5 * MS)));
            common::eventually(|| wakes.count() == 8);
            assert!(!armed.load(Ordering::SeqCst));
            drop(waiters);
            block_on(async { (&a).read_exact(&mut [0; 1]).await }).unwrap();
            foreign_block_on(async {
                assert!(future::poll_once(a.readable()).await.is_none());
                (&b).write_all(b"x").await.unwrap();
                a.readable().await.unwrap();
            });
        }
    });
}

// ---------- copies and streams ----------

#[test]
fn a_copy_moves_every_byte_and_ends() {
    within(30, || {
        block_on(async {
            let data: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
            let (source, mut sender) = pair();
            let (sink, mut receiver) = pipe_pair();
            let copying = spawn(async move {
                let copied = smol::io::copy(&source, &sink).await.unwrap();
                drop(sink);
                copied
            });
            let sending = spawn({
                let data = data.clone();
                async move {
                    sender.write_all(&data).await.unwrap();
                    sender.close().await.unwrap();
                }
            });
            let mut received = Vec::new();
            receiver.read_to_end(&mut received).await.unwrap();
            assert!(received == data);
            assert_eq!(copying.await, data.len() as u64);
            sending.await;
        });
    });
}

/// The writer and the reader of a pipe, in the order of a copy.
fn pipe_pair() -> (Async<File>, Async<File>) {
    let (reader, writer) = pipe();
    (writer, reader)
}

#[test]
fn lines_and_bytes_come_one_by_one() {
    within(10, || {
        block_on(async {
            let (a, mut b) = pair();
            b.write_all("one\ntwo\r\nthree".as_bytes()).await.unwrap();
            b.close().await.unwrap();
            let lines: Vec<String> = BufReader::new(a).lines().map(Result::unwrap).collect().await;
            assert_eq!(lines, ["one", "two", "three"]);
            let (a, mut b) = pair();
            b.write_all(b"xyz").await.unwrap();
            drop(b);
            let bytes: Vec<u8> = a.bytes().map(Result::unwrap).collect().await;
            assert_eq!(bytes, b"xyz");
            let numbers: Vec<_> = stream::iter(0..3).collect().await;
            assert_eq!(numbers, [0, 1, 2]);
        });
    });
}

#[test]
fn whatever_has_a_descriptor_can_be_shared_under_a_handle() {
    within(10, || {
        block_on(async {
            let (a, b) = UnixStream::pair().unwrap();
            let (a, b) = (Arc::new(a), Arc::new(b));
            let ours = Async::new(a.clone()).unwrap();
            let theirs = Async::new(b).unwrap();
            theirs.write_with(|stream| (&**stream).write_all(b"x")).await.unwrap();
            let mut byte = [0];
            ours.read_with(|stream| (&**stream).read(&mut byte)).await.unwrap();
            assert_eq!(byte, *b"x");
            drop(ours);
            assert_eq!(Arc::strong_count(&a), 1);
        });
    });
}

#[test]
fn a_handle_is_a_reference_to_what_it_wraps() {
    fn port(socket: impl AsRef<UdpSocket>) -> u16 {
        socket.as_ref().local_addr().unwrap().port()
    }
    within(20, || {
        let socket = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
        assert_eq!(port(socket.clone()), socket.get_ref().local_addr().unwrap().port());
    });
}
