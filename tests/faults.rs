//! Faults: no descriptors, no threads, a port in use, a name nobody knows, a poller closed underneath, storms of signals.
//! Each is a clear error; nothing is lost, nothing spins, and when the fault is over, everything goes on.

#![cfg(target_os = "linux")]

mod common;
mod common_io;

use common::{cpu_time, foreign_block_on, fresh_process, within};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use smol::{
    Async, Timer, Unblock, block_on, future, prelude::*, resolve, spawn, spawn_local, timeout,
    unblock,
};
use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Makes every `std::thread` without a stack size of its own fail to start.
const NO_THREADS: &[(&str, &str)] = &[("RUST_MIN_STACK", "70368744177664")];

// ---------- out of descriptors ----------

/// While it exists, no descriptor can be opened.
struct NoDescriptors {
    before: Rlimit,
    _taken: Vec<File>,
}

impl NoDescriptors {
    fn new() -> NoDescriptors {
        let before = getrlimit(Resource::Nofile);
        let open =
            std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name());
        let highest = open.filter_map(|name| name.to_str()?.parse::<u64>().ok()).max().unwrap();
        setrlimit(Resource::Nofile, Rlimit { current: Some(highest + 1), maximum: before.maximum })
            .unwrap();
        // Fill the gaps.
        let taken = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        NoDescriptors { before, _taken: taken }
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.before).unwrap();
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error())
}

#[test]
fn without_descriptors_every_operation_that_needs_one_says_so_and_works_later() {
    fresh_process(30, &[], || {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        let a = Arc::new(a);
        let (c, _d) = UnixStream::pair().unwrap();
        let cpu = cpu_time();
        let none = NoDescriptors::new();
        // Before the runtime has anything of its own: it cannot even make a poller.
        assert!(is_exhausted(&Async::new(a.clone()).unwrap_err()));
        assert!(is_exhausted(&Async::<UdpSocket>::bind("127.0.0.1:0").unwrap_err()));
        assert!(is_exhausted(&Async::<TcpListener>::bind("127.0.0.1:0").unwrap_err()));
        assert!(is_exhausted(&Async::<UnixStream>::pair().unwrap_err()));
        // Whatever needs none works.
        let start = Instant::now();
        block_on(Timer::after(5 * MS));
        foreign_block_on(Timer::after(5 * MS));
        assert!(start.elapsed() >= 10 * MS);
        assert_eq!(block_on(spawn(async { 1 })), 1);
        assert_eq!(block_on(unblock(|| 2)), 2);
        assert_eq!(block_on(timeout(MS, future::pending::<()>())).ok(), None);
        block_on(async {
            let error = Async::<TcpStream>::connect(addr).await.unwrap_err();
            assert!(error.to_string().contains(&addr.to_string()), "{error}");
            assert!(is_exhausted(
                &Async::<UnixStream>::connect(dir.path().join("x")).await.unwrap_err()
            ));
            assert!(is_exhausted(&Async::<File>::create(dir.path().join("x")).await.unwrap_err()));
            assert!(is_exhausted(&Async::<File>::open("/dev/null").await.unwrap_err()));
        });
        let mut piped = Command::new("true");
        assert!(is_exhausted(&Async::<Child>::spawn(piped.stdout(Stdio::piped())).unwrap_err()));
        // A process without pipes needs none, if a thread of the pool waits for it.
        assert!(
            block_on(Async::<Child>::spawn(&mut Command::new("true")).unwrap().status())
                .unwrap()
                .success()
        );
        drop(none);
        assert!(cpu_time() - cpu < Duration::from_secs(1), "something spins");
        block_on(async {
            let c = Async::new(c).unwrap();
            let b = Async::new(b).unwrap();
            assert!(future::poll_once(c.readable()).await.is_none());
            drop(b);
            Async::<TcpStream>::connect(addr).await.unwrap();
            Async::<File>::create(dir.path().join("x")).await.unwrap();
            assert!(
                Async::<Child>::spawn(&mut Command::new("true"))
                    .unwrap()
                    .status()
                    .await
                    .unwrap()
                    .success()
            );
            Timer::after(MS).await;
        });
    });
}

#[test]
fn handles_that_exist_keep_working_without_descriptors() {
    fresh_process(30, &[], || {
        let (a, b) = Async::<UnixStream>::pair().unwrap();
        let child = Async::<Child>::spawn(Command::new("sleep").arg("0.05")).unwrap();
        let _none = NoDescriptors::new();
        block_on(async {
            let echo = spawn(async move {
                let mut b = b;
                let mut buffer = [0; 4];
                b.read_exact(&mut buffer).await.unwrap();
                b.write_all(&buffer).await.unwrap();
            });
            Timer::after(MS).await;
            (&a).write_all(b"ping").await.unwrap();
            (&a).read_exact(&mut [0; 4]).await.unwrap();
            echo.await;
            // If it got no pidfd, then without one.
            assert!(child.status().await.unwrap().success());
        });
    });
}

/// <https://github.com/tokio-rs/tokio/issues/4782>
#[test]
fn an_accept_loop_without_descriptors_lets_others_free_some_and_goes_on() {
    fresh_process(30, &[], || starve(accept_loop));
}

#[test]
fn a_stream_of_connections_survives_the_lack_of_descriptors() {
    fresh_process(30, &[], || starve(incoming_loop));
}

fn starve(accept_loop: AcceptLoop) {
    let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let addr = listener.get_ref().local_addr().unwrap();
    // Registered, so that nothing of the runtime is missing later.
    block_on(async { assert!(future::poll_once(listener.accept()).await.is_none()) });
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let none = NoDescriptors::new();
    let errors = AtomicUsize::new(0);
    let cpu = cpu_time();
    block_on(async {
        let others = async {
            for _ in 0..30 {
                Timer::after(10 * MS).await;
            }
            assert!(errors.load(Ordering::SeqCst) > 0, "the limit was not reached");
            let used = cpu_time() - cpu;
            assert!(used < 150 * MS, "{used:?} of processor time in 300 ms");
            drop(none);
            future::pending().await
        };
        assert_eq!(accept_loop(&listener, &errors).or(others).await, 3);
    });
    drop(clients);
}

type AcceptLoop = for<'a> fn(
    &'a Async<TcpListener>,
    &'a AtomicUsize,
) -> std::pin::Pin<Box<dyn Future<Output = usize> + 'a>>;

fn accept_loop<'a>(
    listener: &'a Async<TcpListener>,
    errors: &'a AtomicUsize,
) -> std::pin::Pin<Box<dyn Future<Output = usize> + 'a>> {
    Box::pin(async {
        let mut accepted = Vec::new();
        while accepted.len() < 3 {
            match listener.accept().await {
                Ok(stream) => accepted.push(stream),
                Err(error) => {
                    assert!(is_exhausted(&error), "{error}");
                    errors.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        accepted.len()
    })
}

fn incoming_loop<'a>(
    listener: &'a Async<TcpListener>,
    errors: &'a AtomicUsize,
) -> std::pin::Pin<Box<dyn Future<Output = usize> + 'a>> {
    Box::pin(async {
        let mut accepted = Vec::new();
        let mut incoming = listener.incoming();
        while accepted.len() < 3 {
            match incoming.next().await.unwrap() {
                Ok(stream) => accepted.push(stream),
                Err(_) => drop(errors.fetch_add(1, Ordering::SeqCst)),
            }
        }
        accepted.len()
    })
}

// ---------- no threads ----------

/// <https://github.com/smol-rs/blocking/issues/79>, <https://github.com/tokio-rs/tokio/issues/8406>
#[test]
fn without_threads_everything_is_done_on_the_one_that_there_is() {
    fresh_process(30, NO_THREADS, || {
        assert!(thread::Builder::new().spawn(|| ()).is_err(), "the fault was not injected");
        let cpu = cpu_time();
        block_on(async {
            assert_eq!(spawn(async { 1 }).await, 1);
            assert_eq!(spawn_local(async { 2 }).await, 2);
            assert_eq!(unblock(|| 3).await, 3);
            assert_eq!(spawn(async { unblock(|| 4).await }).await, 4);
            let tasks: Vec<_> =
                (0..100).map(|i| spawn(async move { unblock(move || i).await })).collect();
            for (i, task) in (0..100).zip(tasks) {
                assert_eq!(task.await, i);
            }
            Timer::after(5 * MS).await;
            spawn(Timer::after(5 * MS)).await;
            assert!(!resolve("localhost:80").await.unwrap().is_empty());
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(b"abc").await.unwrap();
            assert_eq!(file.seek(io::SeekFrom::Start(0)).await.unwrap(), 0);
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "abc");
            let mut items = Unblock::new(0..3);
            assert_eq!(items.next().await, Some(0));
            let child = Async::<Child>::spawn(Command::new("sh").args(["-c", "exit 7"])).unwrap();
            assert_eq!(child.status().await.unwrap().code(), Some(7));
            let (mut a, mut b) = Async::<UnixStream>::pair().unwrap();
            let echo = spawn(async move { b.read_exact(&mut [0; 1]).await });
            a.write_all(b"x").await.unwrap();
            echo.await.unwrap();
        });
        assert_eq!(foreign_block_on(unblock(|| 5)), 5);
        foreign_block_on(async {
            let busy = async {
                loop {
                    future::yield_now().await;
                }
            };
            timeout(5 * MS, busy).await.unwrap_err();
        });
        assert!(
            cpu_time() - cpu < Duration::from_secs(1),
            "something spins: {:?}",
            cpu_time() - cpu
        );
    });
}

/// The limit on memory lets threads fail, and can be lifted again.
#[test]
fn when_threads_can_be_started_again_they_are() {
    fresh_process(30, &[], || {
        let start_thread = || thread::Builder::new().spawn(|| ());
        let before = getrlimit(Resource::As);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let size: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
        setrlimit(
            Resource::As,
            Rlimit { current: Some(size * 1024 + 1024 * 1024), maximum: before.maximum },
        )
        .unwrap();
        let injected = start_thread().is_err();
        let tasks: Vec<_> = (0..10).map(|i| unblock(move || i)).collect();
        let spawned = spawn(async { 7 });
        assert_eq!(block_on(unblock(|| 1)), 1);
        assert_eq!(block_on(spawned), 7);
        setrlimit(Resource::As, before).unwrap();
        assert!(injected, "the fault was not injected");
        for (i, task) in (0..10).zip(tasks) {
            assert_eq!(foreign_block_on(task), i);
        }
        // Closures that need each other need threads.
        let (sender, receiver) = mpsc::channel();
        let waiting = unblock(move || receiver.recv().unwrap());
        unblock(move || sender.send(5).unwrap()).detach();
        assert_eq!(foreign_block_on(waiting), 5);
        let (sender, receiver) = mpsc::channel();
        let here = thread::current().id();
        spawn(async move { sender.send(thread::current().id()).unwrap() }).detach();
        assert_ne!(
            receiver.recv().unwrap(),
            here,
            "a worker runs it, as nobody here is in block_on"
        );
    });
}

// ---------- errors of the environment ----------

#[test]
fn the_errors_of_the_environment_are_clear() {
    within(30, || {
        block_on(async {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = taken.local_addr().unwrap();
            let expect = |error: io::Error, kind| assert_eq!(error.kind(), kind, "{error}");
            expect(Async::<TcpListener>::bind(addr).unwrap_err(), ErrorKind::AddrInUse);
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            expect(
                Async::<UdpSocket>::bind(udp.local_addr().unwrap()).unwrap_err(),
                ErrorKind::AddrInUse,
            );
            drop(taken);
            expect(
                Async::<TcpStream>::connect(addr).await.unwrap_err(),
                ErrorKind::ConnectionRefused,
            );
            expect(Async::<File>::open("/no/such/file").await.unwrap_err(), ErrorKind::NotFound);
            expect(Async::<File>::create("/").await.unwrap_err(), ErrorKind::IsADirectory);
            let mut directory = Async::<File>::open("/").await.unwrap();
            expect(directory.read(&mut [0; 1]).await.unwrap_err(), ErrorKind::IsADirectory);
            expect(
                Async::<Child>::spawn(&mut Command::new("/no/such/program")).unwrap_err(),
                ErrorKind::NotFound,
            );
            expect(
                Async::<Child>::spawn(&mut Command::new("no-such-program")).unwrap_err(),
                ErrorKind::NotFound,
            );
            let error = Async::<TcpStream>::connect(("a..b", 80)).await.unwrap_err();
            assert!(error.to_string().contains("a..b"), "{error}");
        });
    });
}

// ---------- descriptors closed underneath ----------

/// Closes a descriptor by its number, which no safe code of std does: signal-hook closes the pipes it was given.
fn close(number: RawFd) {
    let id =
        signal_hook::low_level::pipe::register_raw(signal_hook::consts::SIGUSR2, number).unwrap();
    assert!(signal_hook::low_level::unregister(id));
}

fn poller_descriptor() -> RawFd {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|entry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]")
        })
        .find_map(|entry| entry.file_name().to_str()?.parse().ok())
        .expect("there is no epoll descriptor")
}

/// <https://github.com/knsd/daemonize/issues/2>: everything is closed by somebody who wants to be a daemon.
#[cfg(not(polling_test_poll_backend))]
#[test]
fn a_poller_closed_underneath_is_an_error_and_no_endless_loop() {
    fresh_process(30, &[], || {
        let (a, _b) = Async::<UnixStream>::pair().unwrap();
        let (c, d) = Async::<UnixStream>::pair().unwrap();
        block_on(async {
            assert!(future::poll_once(a.readable()).await.is_none());
            (&c).write_all(b"x").await.unwrap();
        });
        close(poller_descriptor());
        let cpu = cpu_time();
        let error = block_on(timeout(Duration::from_secs(5), a.readable()))
            .expect("nobody was told")
            .unwrap_err();
        assert!(!error.to_string().is_empty());
        let error = foreign_block_on(timeout(Duration::from_secs(5), (&a).read(&mut [0; 1])))
            .expect("nobody was told");
        error.unwrap_err();
        // What needs no poller works: operations that are ready, timers, tasks.
        block_on(async {
            assert_eq!((&d).read(&mut [0; 8]).await.unwrap(), 1);
            Timer::after(5 * MS).await;
            assert_eq!(spawn(async { 1 }).await, 1);
            assert_eq!(unblock(|| 2).await, 2);
        });
        foreign_block_on(Timer::after(5 * MS));
        // And nobody spins, not even with a task that waits.
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            block_on(async {
                let mut far = Timer::after(HOUR);
                assert!(future::poll_once(&mut far).await.is_none());
                sender.send(()).unwrap();
                far.await;
            });
        });
        receiver.recv().unwrap();
        let (idle, _) = common::idle_cost(500 * MS);
        assert!(idle < 100 * MS, "{idle:?} of processor time in half a second");
        assert!(cpu_time() - cpu < Duration::from_secs(5));
    });
}

/// <https://github.com/tokio-rs/tokio/issues/7563>
#[test]
fn a_handle_closed_underneath_leaves_the_reactor_in_order() {
    fresh_process(30, &[], || {
        for _ in 0..20 {
            let (a, b) = Async::<UnixStream>::pair().unwrap();
            block_on(async { assert!(future::poll_once(a.readable()).await.is_none()) });
            let number = a.as_raw_fd();
            close(number);
            // The number goes to the next file, so that std does not close one that is not open.
            let file = File::open("/dev/null").unwrap();
            assert_eq!(file.as_raw_fd(), number);
            std::mem::forget(file);
            drop(a);
            drop(b);
            // The number is free, and the next socket that gets it is a good one.
            let (c, d) = Async::<UnixStream>::pair().unwrap();
            assert!(c.as_raw_fd() == number || d.as_raw_fd() == number);
            block_on(async {
                let mut readable = pin!(c.readable());
                assert!(future::poll_once(readable.as_mut()).await.is_none());
                (&d).write_all(b"x").await.unwrap();
                readable.await.unwrap();
                Timer::after(MS).await;
            });
        }
    });
}

/// The same in a way that std allows: the standard input is replaced.
#[test]
fn a_standard_input_that_is_replaced_while_it_is_registered_can_be_registered_again() {
    fresh_process(30, &[], || {
        for _ in 0..5 {
            let (reader, writer) = common_io::std_pipe();
            rustix::stdio::dup2_stdin(&reader).unwrap();
            drop(reader);
            let stdin = Async::new(io::stdin()).unwrap();
            block_on(async { assert!(future::poll_once(stdin.readable()).await.is_none()) });
            let (reader, mut next) = common_io::std_pipe();
            rustix::stdio::dup2_stdin(&reader).unwrap(); // closes the first pipe
            drop((reader, writer));
            drop(stdin);
            let stdin = Async::new(io::stdin()).unwrap();
            block_on(async {
                let mut readable = pin!(stdin.readable());
                assert!(future::poll_once(readable.as_mut()).await.is_none());
                next.write_all(b"x").unwrap();
                readable.await.unwrap();
            });
        }
    });
}

/// A handle that was leaked is never taken out of the poller, and then its descriptor is closed all the same.
#[cfg(not(polling_test_poll_backend))] // it remembers numbers
#[test]
fn a_handle_that_was_forgotten_and_closed_leaves_its_number_to_others() {
    fresh_process(30, &[], || {
        let mut numbers = Vec::new();
        for round in 0..20 {
            let (a, b) = Async::<UnixStream>::pair().unwrap();
            block_on(async { assert!(future::poll_once(a.readable()).await.is_none()) });
            let number = a.as_raw_fd();
            numbers.push(number);
            if round % 2 == 0 {
                // The kernel keeps the registration of a description that has another descriptor.
                std::mem::forget(a.get_ref().try_clone().unwrap());
            }
            std::mem::forget(a);
            close(number);
            drop(b);
            let (c, d) = Async::<UnixStream>::pair().unwrap();
            assert!(c.as_raw_fd() == number || d.as_raw_fd() == number);
            block_on(async {
                for (one, two) in [(&c, &d), (&d, &c)] {
                    let mut readable = pin!(one.readable());
                    assert!(future::poll_once(readable.as_mut()).await.is_none());
                    { two }.write_all(b"x").await.unwrap();
                    readable.await.unwrap();
                    { one }.read_exact(&mut [0]).await.unwrap();
                    assert!(future::poll_once(one.readable()).await.is_none());
                }
            });
        }
        let (used, wakes) = common::idle_cost(500 * MS);
        assert!(used < 50 * MS && wakes < 10, "{used:?} of processor time, {wakes} wake-ups");
    });
}

/// The same in a way that std allows.
#[cfg(not(polling_test_poll_backend))] // it remembers numbers
#[test]
fn a_standard_input_that_is_forgotten_and_replaced_can_be_registered_again() {
    fresh_process(30, &[], || {
        for _ in 0..5 {
            let (reader, _writer) = common_io::std_pipe();
            rustix::stdio::dup2_stdin(&reader).unwrap();
            drop(reader);
            let stdin = Async::new(io::stdin()).unwrap();
            block_on(async { assert!(future::poll_once(stdin.readable()).await.is_none()) });
            std::mem::forget(stdin);
            let (reader, mut next) = common_io::std_pipe();
            rustix::stdio::dup2_stdin(&reader).unwrap(); // closes the first pipe
            let stdin = Async::new(io::stdin()).unwrap();
            block_on(async {
                let mut readable = pin!(stdin.readable());
                assert!(future::poll_once(readable.as_mut()).await.is_none());
                next.write_all(b"x").unwrap();
                readable.await.unwrap();
            });
        }
    });
}

// ---------- signals ----------

/// Sends signals to this process until it is dropped: several kinds at a time, so that more than one thread is interrupted.
struct Storm {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Storm {
    fn new() -> Storm {
        let seen = Arc::new(AtomicBool::new(false));
        let signals = [
            Signal::USR1,
            Signal::USR2,
            Signal::ALARM,
            Signal::WINCH,
            Signal::IO,
            Signal::CONT,
            Signal::URG,
        ];
        for signal in signals {
            signal_hook::flag::register(signal.as_raw(), seen.clone()).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = stop.clone();
            move || {
                let own = rustix::process::getpid();
                while !stop.load(Ordering::SeqCst) {
                    for signal in signals {
                        kill_process(own, signal).unwrap();
                    }
                    thread::sleep(MS);
                }
                assert!(seen.load(Ordering::SeqCst), "there was no storm");
            }
        });
        Storm { stop, thread: Some(thread) }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// <https://github.com/smol-rs/polling/pull/164>
#[test]
fn in_a_storm_of_signals_timers_are_not_early_and_every_operation_comes_to_its_end() {
    fresh_process(60, &[], || {
        let _storm = Storm::new();
        let work = || async {
            for _ in 0..20 {
                let start = Instant::now();
                Timer::after(7 * MS).await;
                assert!(start.elapsed() >= 7 * MS);
            }
            let (mut a, mut b) = Async::<UnixStream>::pair().unwrap();
            let writing = spawn(async move { a.write_all(&vec![1; 3_000_000]).await });
            let mut buffer = Vec::new();
            b.read_to_end(&mut buffer).await.unwrap();
            assert_eq!(buffer.len(), 3_000_000);
            writing.await.unwrap();

            let listener = Async::<TcpListener>::bind("127.0.0.1:0").unwrap();
            let addr = listener.get_ref().local_addr().unwrap();
            for _ in 0..50 {
                let (connected, accepted) =
                    future::zip(Async::<TcpStream>::connect(addr), listener.accept()).await;
                connected.unwrap();
                accepted.unwrap();
            }
            let mut file = Async::from(tempfile::tempfile().unwrap());
            for _ in 0..50 {
                file.write_all(&[7; 10_000]).await.unwrap();
            }
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 0.05; echo out; exit 3"]).stdout(Stdio::piped());
            let output = Async::<Child>::spawn(&mut command).unwrap().output().await.unwrap();
            assert_eq!((output.status.code(), &*output.stdout), (Some(3), &b"out\n"[..]));
            assert!(!resolve("localhost:80").await.unwrap().is_empty());
            // A pool thread that is interrupted in the middle of a read.
            let (reader, writer) = common_io::std_pipe();
            let mut reader = Unblock::new(reader);
            let late = spawn(async move {
                Timer::after(20 * MS).await;
                { &writer }.write_all(b"late").unwrap();
            });
            let mut text = String::new();
            reader.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "late");
            late.await;
        };
        thread::scope(|s| {
            s.spawn(|| block_on(work()));
            s.spawn(|| foreign_block_on(work()));
        });
    });
}

/// In the only thread of a program, the signals hit the poller itself.
#[test]
fn a_storm_of_signals_costs_an_idle_program_nothing_but_the_signals() {
    fresh_process(30, &[], || {
        let _storm = Storm::new();
        let (a, _b) = Async::<UnixStream>::pair().unwrap();
        let cpu = cpu_time();
        let start = Instant::now();
        block_on(async {
            assert!(timeout(500 * MS, (&a).read(&mut [0; 1])).await.is_err());
        });
        assert!(start.elapsed() >= 500 * MS);
        let used = cpu_time() - cpu;
        assert!(used < 300 * MS, "{used:?} of processor time in half a second");
    });
}
