//! What std alone, without this crate, meets on Windows and under wine. Each test says what holds
//! on Linux; where one fails, the tests of the crate that need the same cannot pass either, and
//! `.ci/wine`, which runs this beside them, names it as the reason.

#![feature(tcp_linger)]

use std::{
    cell::RefCell,
    fmt::Debug,
    io::{ErrorKind, Read, Write, stderr},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(3);

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// Fails if it is not `expected`. Ends the process at once: where a thread hangs at its end, or in
/// a call, a process does not come to its own.
#[track_caller]
fn is<T: PartialEq + Debug>(what: T, expected: T) {
    if what != expected {
        let place = std::panic::Location::caller();
        let _ = writeln!(stderr(), "panicked at {place}:\n{what:?} instead of {expected:?}");
        std::process::abort();
    }
}

/// What a thread that already waits in `read` is told after `event`.
fn read_that_waits(
    stream: &TcpStream,
    event: impl FnOnce(),
) -> Result<Result<usize, ErrorKind>, RecvTimeoutError> {
    let mut stream = stream.try_clone().unwrap();
    let (told, tells) = mpsc::channel();
    thread::spawn(move || told.send(stream.read(&mut [0; 8]).map_err(|err| err.kind())));
    thread::sleep(Duration::from_millis(100));
    event();
    tells.recv_timeout(LONG)
}

#[test]
fn who_waits_for_bytes_sees_that_its_own_end_is_shut_down_for_reading() {
    let (a, _b) = pair();
    let shut_down = || a.shutdown(Shutdown::Read).unwrap();
    is(read_that_waits(&a, shut_down), Ok(Ok(0)));
}

#[test]
fn who_waits_for_bytes_sees_that_the_other_end_is_shut_down_for_writing() {
    let (a, b) = pair();
    let shut_down = || b.shutdown(Shutdown::Write).unwrap();
    is(read_that_waits(&a, shut_down), Ok(Ok(0)));
}

#[test]
fn who_waits_for_bytes_sees_a_reset() {
    let (a, b) = pair();
    b.set_linger(Some(Duration::ZERO)).unwrap();
    is(read_that_waits(&a, || drop(b)), Ok(Err(ErrorKind::ConnectionReset)));
}

/// On a socket that does not block, as every reactor has it.
#[test]
fn who_looks_again_and_again_sees_a_reset() {
    let (mut a, b) = pair();
    a.set_nonblocking(true).unwrap();
    b.set_linger(Some(Duration::ZERO)).unwrap();
    drop(b);
    let error = loop {
        match a.read(&mut [0; 8]).map_err(|err| err.kind()) {
            Err(ErrorKind::WouldBlock) => thread::yield_now(),
            said => break said,
        }
    };
    is(error, Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_datagram_socket_that_looks_again_and_again_is_told_that_nobody_listens() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(closed).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.send(b"x").unwrap();
    let start = Instant::now();
    let error = loop {
        match socket.recv(&mut [0; 8]).map_err(|err| err.kind()) {
            Err(ErrorKind::WouldBlock) if start.elapsed() < LONG => thread::yield_now(),
            said => break said,
        }
    };
    is(error, Err(ErrorKind::ConnectionRefused));
}

struct AtTheEnd(Option<Box<dyn FnOnce()>>);
impl Drop for AtTheEnd {
    fn drop(&mut self) {
        (self.0.take().unwrap())();
    }
}
thread_local!(static AT_THE_END: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) });

/// Runs `f` in the destructor of a thread-local, and says whether that ended.
fn at_the_end_of_a_thread(f: impl FnOnce() + Send + 'static) -> bool {
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        let f = move || {
            f();
            let _ = ended.send(());
        };
        AT_THE_END.set(Some(AtTheEnd(Some(Box::new(f)))));
    });
    end.recv_timeout(LONG + LONG).is_ok()
}

#[test]
fn a_thread_that_is_started_in_the_destructor_of_a_thread_local_runs() {
    let (told, tells) = mpsc::channel();
    let ended = at_the_end_of_a_thread(move || {
        let (running, runs) = mpsc::channel();
        thread::spawn(move || running.send(()));
        told.send(runs.recv_timeout(LONG)).unwrap();
    });
    is(tells.recv(), Ok(Ok(())));
    is(ended, true);
}

#[test]
fn a_thread_that_ends_can_be_joined_in_the_destructor_of_a_thread_local() {
    let (go, goes) = mpsc::channel::<()>();
    let (running, runs) = mpsc::channel::<()>();
    let other = thread::spawn(move || {
        running.send(()).unwrap();
        let _ = goes.recv();
    });
    runs.recv().unwrap();
    let ended = at_the_end_of_a_thread(move || {
        drop(go);
        other.join().unwrap();
    });
    is(ended, true);
}
