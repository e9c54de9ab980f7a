//! Unix sockets: streams, listeners and datagrams by path, by abstract name and in pairs; nobody is
//! told "connected" who is not.

#![cfg(unix)]

mod common;
mod common_io;

use common::{foreign_block_on, within};
use common_io::{fill, waits_for};
use smol::{Async, Timer, block_on, future, prelude::*, spawn, timeout};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::tempdir;

const MS: Duration = Duration::from_millis(1);

fn stream_pair() -> (Async<UnixStream>, Async<UnixStream>) {
    Async::<UnixStream>::pair().unwrap()
}

fn datagram_pair() -> (Async<UnixDatagram>, Async<UnixDatagram>) {
    Async::<UnixDatagram>::pair().unwrap()
}

// ---------- streams ----------

#[test]
fn a_client_and_a_server_talk() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            assert_eq!(listener.get_ref().local_addr().unwrap().as_pathname(), Some(&*path));
            let server = spawn(async move {
                let (mut stream, peer) = listener.accept().await.unwrap();
                assert!(peer.is_unnamed());
                let mut request = [0; 4];
                stream.read_exact(&mut request).await.unwrap();
                stream.write_all(&request).await.unwrap();
            });
            let mut client = Async::<UnixStream>::connect(&path).await.unwrap();
            assert_eq!(client.get_ref().peer_addr().unwrap().as_pathname(), Some(&*path));
            client.write_all(b"ping").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "ping");
            server.await;
        });
    });
}

#[test]
fn incoming_yields_one_connection_after_the_other() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let clients = spawn(async move {
                for i in 0..30u8 {
                    let mut stream = Async::<UnixStream>::connect(&path).await.unwrap();
                    stream.write_all(&[i]).await.unwrap();
                }
            });
            let mut incoming = listener.incoming().take(30);
            let mut seen = Vec::new();
            while let Some(stream) = incoming.next().await {
                stream.unwrap().read_to_end(&mut seen).await.unwrap();
            }
            assert_eq!(seen, (0..30).collect::<Vec<u8>>());
            clients.await;
        });
    });
}

/// <https://github.com/smol-rs/smol/commit/0e6345d>
#[test]
fn every_operation_waits_for_its_own_direction() {
    within(20, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let connect = || drop(UnixStream::connect(&path).unwrap());
            waits_for("accept", listener.accept(), || {}, connect).await;
            let mut incoming = listener.incoming();
            waits_for("incoming", async { incoming.next().await.unwrap() }, || {}, connect).await;

            let (a, b) = datagram_pair();
            let mut buffer = [0; 16];
            let send = || assert_eq!(b.get_ref().send(b"xyz").unwrap(), 3);
            assert_eq!(waits_for("recv", a.recv(&mut buffer), || {}, send).await, 3);
            assert_eq!(waits_for("recv_from", a.recv_from(&mut buffer), || {}, send).await.0, 3);
            waits_for("readable", a.readable(), || {}, send).await;
            a.recv(&mut buffer).await.unwrap();

            // The queue of the receiver is full: sending has to wait, and not for something to
            // read.
            let flood = || while a.get_ref().send(b"flood").is_ok() {};
            let drain = || while b.get_ref().recv(&mut [0; 16]).is_ok() {};
            flood();
            assert_eq!(waits_for("send", a.send(b"xyz"), send, drain).await, 3);
            flood();
            waits_for("writable", a.writable(), send, drain).await;

            let name = dir.path().join("datagrams");
            let receiver = Async::<UnixDatagram>::bind(&name).unwrap();
            let sender = Async::<UnixDatagram>::unbound().unwrap();
            // A sender without a peer is not told by epoll when a queue it does not know has room;
            // a connected one is.
            sender.get_ref().connect(&name).unwrap();
            while sender.get_ref().send_to(b"flood", &name).is_ok() {}
            let drain = || while receiver.get_ref().recv(&mut [0; 16]).is_ok() {};
            assert_eq!(waits_for("send_to", sender.send_to(b"xyz", &name), || {}, drain).await, 3);
        });
    });
}

#[test]
fn connect_fails_as_it_does_in_std() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let missing = dir.path().join("missing");
            let error = Async::<UnixStream>::connect(&missing).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let file = dir.path().join("file");
            std::fs::write(&file, "").unwrap();
            let error = Async::<UnixStream>::connect(&file).await.unwrap_err();
            assert_eq!(error.kind(), UnixStream::connect(&file).unwrap_err().kind());
            // A socket nobody listens on any more.
            let dead = dir.path().join("dead");
            drop(UnixListener::bind(&dead).unwrap());
            let error = Async::<UnixStream>::connect(&dead).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            // A socket of another kind.
            let datagrams = dir.path().join("datagrams");
            let _socket = UnixDatagram::bind(&datagrams).unwrap();
            let error = Async::<UnixStream>::connect(&datagrams).await.unwrap_err();
            assert_eq!(error.kind(), UnixStream::connect(&datagrams).unwrap_err().kind());
        });
    });
}

#[test]
fn bind_fails_as_it_does_in_std() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = Async::<UnixListener>::bind(&path).unwrap();
    assert_eq!(Async::<UnixListener>::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(Async::<UnixDatagram>::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    let nowhere = dir.path().join("no/such/directory");
    assert_eq!(Async::<UnixListener>::bind(&nowhere).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(Async::<UnixDatagram>::bind(&nowhere).unwrap_err().kind(), ErrorKind::NotFound);
}

/// `sun_path` holds 108 bytes on Linux, the terminating zero included.
#[test]
fn a_path_that_is_too_long_or_has_a_zero_inside_is_an_error() {
    within(10, || {
        block_on(async {
            for path in ["x".repeat(109), "x".repeat(1000), "in\0side".to_owned()] {
                let path = Path::new(&path);
                assert_eq!(
                    Async::<UnixListener>::bind(path).unwrap_err().kind(),
                    ErrorKind::InvalidInput,
                    "{path:?}"
                );
                assert_eq!(
                    Async::<UnixDatagram>::bind(path).unwrap_err().kind(),
                    ErrorKind::InvalidInput,
                    "{path:?}"
                );
                assert_eq!(
                    Async::<UnixStream>::connect(path).await.unwrap_err().kind(),
                    ErrorKind::InvalidInput,
                    "{path:?}"
                );
                let socket = Async::<UnixDatagram>::unbound().unwrap();
                assert_eq!(
                    socket.send_to(b"x", path).await.unwrap_err().kind(),
                    ErrorKind::InvalidInput,
                    "{path:?}"
                );
            }
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn the_longest_path_of_std_works() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            // The longest that std binds.
            let length = 107 - dir.path().as_os_str().len() - 1;
            let path = dir.path().join("x".repeat(length));
            assert_eq!(path.as_os_str().len(), 107);
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            Async::<UnixStream>::connect(&path).await.unwrap();
            listener.accept().await.unwrap();
            let longer = dir.path().join("x".repeat(length + 1));
            assert_eq!(
                Async::<UnixListener>::bind(&longer).is_ok(),
                UnixListener::bind(&longer).is_ok()
            );
        });
    });
}

/// <https://github.com/smol-rs/async-io/issues/146>
#[cfg(target_os = "linux")]
#[test]
fn abstract_names_work() {
    use std::os::linux::net::SocketAddrExt;
    within(10, || {
        block_on(async {
            let name = format!("smol-test-{}-{}", std::process::id(), fastrand::u64(..));
            let path = format!("\0{name}");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let addr = listener.get_ref().local_addr().unwrap();
            assert_eq!(addr.as_abstract_name(), Some(name.as_bytes()));
            assert_eq!(
                Async::<UnixListener>::bind(&path).unwrap_err().kind(),
                ErrorKind::AddrInUse
            );
            // With ours and with std's.
            let mut client = Async::<UnixStream>::connect(&path).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(server.read(&mut [0; 2]).await.unwrap(), 1);
            UnixStream::connect_addr(&addr).unwrap();
            listener.accept().await.unwrap();
            drop(listener);
            let error = Async::<UnixStream>::connect(&path).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

            let receiver = Async::<UnixDatagram>::bind(&path).unwrap();
            let sender = Async::<UnixDatagram>::unbound().unwrap();
            assert_eq!(sender.send_to(b"datagram", &path).await.unwrap(), 8);
            let (n, from) = receiver.recv_from(&mut [0; 16]).await.unwrap();
            assert!(n == 8 && from.is_unnamed());
        });
    });
}

/// The addresses of std: by path, by abstract name; and one without a name is none.
#[cfg(target_os = "linux")]
#[test]
fn addresses_of_std_can_be_given_and_are_given_back() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let name = format!("smol-test-{}-{}", std::process::id(), fastrand::u64(..));
            for addr in [
                SocketAddr::from_pathname(dir.path().join("stream")).unwrap(),
                SocketAddr::from_abstract_name(name).unwrap(),
                SocketAddr::from_abstract_name(b"with\0zeros\0").unwrap(),
            ] {
                let listener = Async::<UnixListener>::bind_addr(&addr).unwrap();
                let same = listener.get_ref().local_addr().unwrap();
                assert_eq!(same.as_pathname(), addr.as_pathname());
                assert_eq!(same.as_abstract_name(), addr.as_abstract_name());
                for addr in [&addr, &same] {
                    let mut client = Async::<UnixStream>::connect_addr(addr).await.unwrap();
                    let (mut server, peer) = listener.accept().await.unwrap();
                    assert!(peer.is_unnamed());
                    client.write_all(b"x").await.unwrap();
                    assert_eq!(server.read(&mut [0; 2]).await.unwrap(), 1);
                }
                drop(listener);
                let error = Async::<UnixStream>::connect_addr(&addr).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            }
            let addr = SocketAddr::from_pathname(dir.path().join("datagram")).unwrap();
            let receiver = Async::<UnixDatagram>::bind_addr(&addr).unwrap();
            let sender = Async::<UnixDatagram>::bind(dir.path().join("sender")).unwrap();
            assert_eq!(sender.send_to_addr(b"ping", &addr).await.unwrap(), 4);
            let (n, from) = receiver.recv_from(&mut [0; 16]).await.unwrap();
            assert_eq!(n, 4);
            // What was received from can be answered.
            assert_eq!(receiver.send_to_addr(b"pong!", &from).await.unwrap(), 5);
            assert_eq!(sender.recv(&mut [0; 16]).await.unwrap(), 5);
            let unnamed = UnixDatagram::unbound().unwrap().local_addr().unwrap();
            for error in [
                sender.send_to_addr(b"x", &unnamed).await.unwrap_err(),
                Async::<UnixStream>::connect_addr(&unnamed).await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            }
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn three_hundred_connections_made_before_anybody_accepts_find_room() {
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    if allowed.trim().parse::<u32>().unwrap() < 300 {
        return eprintln!("skipped: the system allows {allowed} connections");
    }
    within(20, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let mut clients = Vec::new();
            for _ in 0..300 {
                let connect = Async::<UnixStream>::connect(&path);
                let connected = timeout(Duration::from_secs(5), connect).await;
                clients.push(connected.expect("the queue has no room").unwrap());
            }
            while clients.pop().is_some() {
                listener.accept().await.unwrap();
            }
        });
    });
}

#[test]
fn connections_and_datagrams_can_be_polled_for() {
    use std::task::{Context, Poll};
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let (waker, wakes) = common::counting_waker();
            let mut cx = Context::from_waker(&waker);
            assert!(listener.poll_accept(&mut cx).is_pending());
            let _client = Async::<UnixStream>::connect(&path).await.unwrap();
            while wakes.count() < 1 {
                Timer::after(MS).await;
            }
            assert!(matches!(listener.poll_accept(&mut cx), Poll::Ready(Ok(_))));
            assert!(listener.poll_accept(&mut cx).is_pending());

            let (one, two) = datagram_pair();
            let mut buf = [0; 8];
            assert!(one.poll_recv_from(&mut cx, &mut buf).is_pending());
            two.send(b"abc").await.unwrap();
            while wakes.count() < 2 {
                Timer::after(MS).await;
            }
            let Poll::Ready(Ok((3, from))) = one.poll_recv_from(&mut cx, &mut buf) else {
                panic!("it is readable and has nothing");
            };
            assert!(from.is_unnamed());
        });
    });
}

/// Children inherit none of them; and none of them blocks a thread.
#[test]
fn every_socket_of_ours_is_closed_on_exec_and_does_not_block() {
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    fn check(name: &str, socket: &impl AsFd) {
        assert!(fcntl_getfd(socket).unwrap().contains(FdFlags::CLOEXEC), "{name} is inherited");
        let flags = rustix::fs::fcntl_getfl(socket).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK), "{name} blocks");
    }
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let listener = Async::<TcpListener>::bind("127.0.0.1:0").unwrap();
            let addr = listener.get_ref().local_addr().unwrap();
            let client = Async::<TcpStream>::connect(addr).await.unwrap();
            check("a listener", &listener);
            check("a client", &client);
            check("a server's end", &listener.accept().await.unwrap().0);
            check("a socket for datagrams", &Async::<UdpSocket>::bind("127.0.0.1:0").unwrap());

            let path = dir.path().join("stream");
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let client = Async::<UnixStream>::connect(&path).await.unwrap();
            check("a listener", &listener);
            check("a client", &client);
            check("a server's end", &listener.accept().await.unwrap().0);
            check("half a pair", &stream_pair().1);
            check(
                "a socket with a path",
                &Async::<UnixDatagram>::bind(dir.path().join("d")).unwrap(),
            );
            check("a socket without", &Async::<UnixDatagram>::unbound().unwrap());
            check("half a pair", &datagram_pair().0);
        });
    });
}

/// The kernel answers EAGAIN, which for TCP would mean "in progress" (EINPROGRESS) and here means
/// "try again".
#[cfg(target_os = "linux")]
#[test]
fn a_connect_to_a_full_queue_waits_or_fails_but_never_pretends() {
    within(20, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener =
                socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
            listener.listen(1).unwrap();
            let connects: Vec<_> = (0..6u8)
                .map(|i| {
                    let path = path.clone();
                    spawn(async move {
                        let mut stream = Async::<UnixStream>::connect(&path).await?;
                        // Whoever is told "connected" is.
                        stream.get_ref().peer_addr().expect("connected to nobody");
                        stream.write_all(&[i]).await.expect("connected to nobody");
                        std::io::Result::Ok(stream)
                    })
                })
                .collect();
            Timer::after(20 * MS).await;
            let listener =
                Async::new(UnixListener::from(std::os::fd::OwnedFd::from(listener))).unwrap();
            let accepted = Arc::new(AtomicUsize::new(0));
            let counter = accepted.clone();
            let _accepting = spawn(async move {
                let mut streams = Vec::new();
                loop {
                    streams.push(listener.accept().await.unwrap());
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            });
            let mut connected = 0;
            let mut streams = Vec::new();
            for connect in connects {
                match connect.await {
                    Ok(stream) => {
                        connected += 1;
                        streams.push(stream);
                    }
                    Err(e) => assert!(
                        matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused),
                        "{e:?}"
                    ),
                }
            }
            assert!(connected >= 2);
            // The listener sees as many, and no more.
            while accepted.load(Ordering::SeqCst) < connected {
                Timer::after(MS).await;
            }
            Timer::after(20 * MS).await;
            assert_eq!(accepted.load(Ordering::SeqCst), connected);
        });
    });
}

/// <https://github.com/tokio-rs/tokio/issues/3879>
#[cfg(target_os = "linux")]
#[test]
fn a_connect_that_waits_for_a_queue_learns_that_its_listener_is_gone() {
    within(20, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener =
                socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
            listener.listen(0).unwrap();
            let connects: Vec<_> =
                (0..4).map(|_| spawn(Async::<UnixStream>::connect(path.clone()))).collect();
            Timer::after(10 * MS).await;
            drop(listener);
            for connect in connects {
                if let Err(e) = connect.await {
                    let expected = [
                        ErrorKind::ConnectionRefused,
                        ErrorKind::ConnectionReset,
                        ErrorKind::WouldBlock,
                    ];
                    assert!(expected.contains(&e.kind()), "{e:?}");
                }
            }
        });
    });
}

/// <https://github.com/smol-rs/smol/issues/131>
#[test]
fn a_hang_up_reaches_a_reader_and_a_writer_that_wait() {
    within(10, || {
        block_on(async {
            let (a, b) = stream_pair();
            let mut reading = pin!(async { (&a).read(&mut [0; 1]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            drop(b);
            assert_eq!(reading.await.unwrap(), 0);

            let (a, b) = stream_pair();
            fill(a.get_ref());
            let mut writing = pin!(async { (&a).write(b"x").await });
            assert!(future::poll_once(writing.as_mut()).await.is_none());
            drop(b);
            assert!(matches!(
                writing.await.unwrap_err().kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ));

            // Datagrams know no end, but a peer of a pair that is gone refuses them.
            let (a, b) = datagram_pair();
            while a.get_ref().send(b"flood").is_ok() {}
            let mut sending = pin!(a.send(b"x"));
            assert!(future::poll_once(sending.as_mut()).await.is_none());
            drop(b);
            let error = sending.await.unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
                "{error:?}"
            );
        });
    });
}

#[test]
fn close_ends_the_writing_half_only() {
    within(10, || {
        block_on(async {
            let (mut a, mut b) = stream_pair();
            a.write_all(b"last").await.unwrap();
            a.close().await.unwrap();
            let mut all = String::new();
            b.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "last");
            b.write_all(b"answer").await.unwrap();
            assert_eq!(a.read(&mut [0; 16]).await.unwrap(), 6);
            drop(b);
            a.close().await.unwrap();
        });
    });
}

#[test]
fn flush_and_close_of_a_stream_that_is_full_do_not_wait_for_the_peer() {
    within(10, || {
        block_on(async {
            let (mut a, mut b) = stream_pair();
            fill(a.get_ref());
            assert!(future::poll_once(a.write(b"x")).await.is_none());
            timeout(Duration::from_secs(5), a.flush()).await.expect("flush waits").unwrap();
            timeout(Duration::from_secs(5), a.close()).await.expect("close waits").unwrap();
            assert!(b.read_to_end(&mut Vec::new()).await.unwrap() > 0);
            // Pipes have nothing to flush either.
            let (_reader, mut writer) = common_io::pipe();
            fill(writer.get_ref());
            assert!(future::poll_once(writer.write(b"x")).await.is_none());
            timeout(Duration::from_secs(5), writer.flush()).await.expect("flush waits").unwrap();
            timeout(Duration::from_secs(5), writer.close()).await.expect("close waits").unwrap();
        });
    });
}

/// A handle of somebody's own, with a buffer.
struct Buffered {
    socket: UnixStream,
    buffer: std::sync::Mutex<Vec<u8>>,
    flushes: AtomicUsize,
}

impl std::os::fd::AsFd for Buffered {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Write for &Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.flushes.fetch_add(1, Ordering::SeqCst) % 3 == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let mut buffer = self.buffer.lock().unwrap();
        while !buffer.is_empty() {
            let n = (&self.socket).write(&buffer)?;
            buffer.drain(..n);
        }
        Ok(())
    }
}

#[test]
fn a_handle_whose_flush_would_block_waits_until_it_does_not() {
    within(20, || {
        block_on(async {
            for closes in [false, true] {
                let (one, mut peer) = stream_pair();
                let (socket, flushes) = (one.into_inner().unwrap(), AtomicUsize::new(0));
                let handle = Async::new(Buffered { socket, buffer: Default::default(), flushes });
                let mut handle = handle.unwrap();
                let full = fill(&handle.get_ref().socket);
                handle.write_all(b"last words").await.unwrap();
                let mut other = handle.clone();
                let mut flushing =
                    pin!(async { if closes { other.close().await } else { other.flush().await } });
                assert!(future::poll_once(flushing.as_mut()).await.is_none());
                let before = handle.get_ref().flushes.load(Ordering::SeqCst);
                timeout(20 * MS, flushing.as_mut()).await.unwrap_err();
                let tries = handle.get_ref().flushes.load(Ordering::SeqCst) - before;
                assert!(tries < 10, "it tried {tries} times in vain");
                let mut all = vec![0; full + 10];
                let reading = peer.read_exact(&mut all);
                let (flushed, read) = future::zip(flushing, reading).await;
                flushed.unwrap();
                read.unwrap();
                assert!(all.ends_with(b"last words"));
                drop(handle);
                drop(other);
                assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0);
            }
        });
    });
}

#[test]
fn the_sockets_of_std_can_be_adopted() {
    within(10, || {
        block_on(async {
            let (a, mut b) = UnixStream::pair().unwrap();
            let a = Async::try_from(a).unwrap();
            (&a).write_all(b"to std").await.unwrap();
            let mut buffer = [0; 16];
            assert_eq!(b.read(&mut buffer).unwrap(), 6);
            b.write_all(b"back").unwrap();
            assert_eq!((&a).read(&mut buffer).await.unwrap(), 4);

            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let listener = Async::try_from(UnixListener::bind(&path).unwrap()).unwrap();
            let client = UnixStream::connect(&path).unwrap();
            let (server, _) = listener.accept().await.unwrap();
            drop(client);
            assert_eq!((&server).read(&mut buffer).await.unwrap(), 0);

            let datagrams = Async::try_from(UnixDatagram::unbound().unwrap()).unwrap();
            assert!(format!("{listener:?} {server:?} {datagrams:?}").contains("UnixDatagram"));
        });
    });
}

#[test]
fn streams_work_under_a_foreign_block_on() {
    within(10, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("socket");
        foreign_block_on(async {
            let listener = Async::<UnixListener>::bind(&path).unwrap();
            let accepting = spawn(async move { listener.accept().await.unwrap() });
            let mut client = Async::<UnixStream>::connect(&path).await.unwrap();
            let (server, _) = accepting.await;
            let mut reading = pin!(async { client.read(&mut [0; 8]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            (&server).write_all(b"x").await.unwrap();
            assert_eq!(reading.await.unwrap(), 1);
        });
    });
}

// ---------- datagrams ----------

#[test]
fn datagrams_arrive_whole_and_with_their_sender() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let (one, two) = (dir.path().join("one"), dir.path().join("two"));
            let a = Async::<UnixDatagram>::bind(&one).unwrap();
            let b = Async::<UnixDatagram>::bind(&two).unwrap();
            let nobody = Async::<UnixDatagram>::unbound().unwrap();
            assert_eq!(a.send_to(b"named", &two).await.unwrap(), 5);
            assert_eq!(nobody.send_to(b"unnamed", &two).await.unwrap(), 7);
            assert_eq!(a.send_to(b"", &two).await.unwrap(), 0);
            let mut buffer = [0; 16];
            let (n, from) = b.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..n], from.as_pathname()), (&b"named"[..], Some(&*one)));
            let (n, from) = b.recv_from(&mut buffer).await.unwrap();
            assert!(n == 7 && from.is_unnamed());
            assert_eq!(b.recv(&mut buffer).await.unwrap(), 0);
            assert!(future::poll_once(b.recv(&mut buffer)).await.is_none());
            b.get_ref().connect(&one).unwrap();
            b.send(b"back").await.unwrap();
            assert_eq!(a.recv(&mut buffer).await.unwrap(), 4);
            let error = nobody.send_to(b"x", dir.path().join("missing")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert_eq!(nobody.send(b"x").await.unwrap_err().kind(), ErrorKind::NotConnected);
        });
    });
}

#[test]
fn a_pair_of_datagram_sockets_passes_thousands_in_order() {
    within(20, || {
        block_on(async {
            let (a, b) = datagram_pair();
            let sending = spawn(async move {
                for i in 0..2_000u32 {
                    assert_eq!(a.send(&i.to_ne_bytes()).await.unwrap(), 4);
                }
            });
            for i in 0..2_000u32 {
                let mut number = [0; 8];
                assert_eq!(b.recv(&mut number).await.unwrap(), 4);
                assert_eq!(number[..4], i.to_ne_bytes());
            }
            sending.await;
        });
    });
}

/// Nothing that the kernel tells about the sender changes when a queue has room again that others
/// filled.
#[test]
fn a_sender_gets_through_to_a_queue_that_others_filled() {
    within(20, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let receiver = Async::<UnixDatagram>::bind(&path).unwrap();
            let other = UnixDatagram::unbound().unwrap();
            other.set_nonblocking(true).unwrap();
            while other.send_to(b"flood", &path).is_ok() {}
            let sender = Async::<UnixDatagram>::unbound().unwrap();
            let sending = spawn(async move { sender.send_to(b"the last", &path).await });
            Timer::after(5 * MS).await;
            let mut buffer = [0; 16];
            loop {
                let n = receiver.recv(&mut buffer).await.unwrap();
                if &buffer[..n] == b"the last" {
                    break;
                }
            }
            assert_eq!(sending.await.unwrap(), 8);
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_sender_that_waits_for_a_queue_that_others_filled_does_not_spin() {
    common::fresh_process(20, &[], || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let receiver = Async::<UnixDatagram>::bind(&path).unwrap();
            let other = UnixDatagram::unbound().unwrap();
            other.set_nonblocking(true).unwrap();
            while other.send_to(b"flood", &path).is_ok() {}
            let sender = Async::<UnixDatagram>::unbound().unwrap();
            let before = common::cpu_time();
            let sending = timeout(Duration::from_millis(500), sender.send_to(b"x", &path));
            assert!(sending.await.is_err());
            let used = common::cpu_time() - before;
            assert!(used < 100 * MS, "{used:?} of processor time in half a second");
            drop(receiver);
        });
    });
}

#[test]
fn a_sender_without_a_peer_gets_through_to_a_full_queue_once_it_is_drained() {
    within(20, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("socket");
            let receiver = Async::<UnixDatagram>::bind(&path).unwrap();
            let sender = Async::<UnixDatagram>::unbound().unwrap();
            while sender.get_ref().send_to(b"flood", &path).is_ok() {}
            let sending = spawn(async move { sender.send_to(b"the last", &path).await });
            Timer::after(5 * MS).await;
            let mut buffer = [0; 16];
            loop {
                let n = receiver.recv(&mut buffer).await.unwrap();
                if &buffer[..n] == b"the last" {
                    break;
                }
            }
            assert_eq!(sending.await.unwrap(), 8);
        });
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_message_that_carries_a_descriptor_does_not_hide_what_comes_after_it() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::{io::IoSlice, mem::MaybeUninit, os::fd::AsFd};
    within(10, || {
        block_on(async {
            let (mut reader, peer) = stream_pair();
            let mut buf = [0; 64];
            assert!(future::poll_once(reader.read(&mut buf)).await.is_none());
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [peer.as_fd()];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let parts = [IoSlice::new(b"one")];
            sendmsg(&peer, &parts, &mut ancillary, SendFlags::empty()).unwrap();
            peer.get_ref().write_all(b"two").unwrap();
            // A read ends at such a message, however large the buffer.
            assert_eq!(reader.read(&mut buf).await.unwrap(), 3);
            assert_eq!(reader.read(&mut buf).await.unwrap(), 3);
            assert_eq!(&buf[..3], b"two");
        })
    })
}

/// A loop that tries until there is somebody does not take the thread.
#[test]
fn connects_and_datagrams_that_fail_at_once_let_others_run() {
    within(30, || {
        let dir = tempdir().unwrap();
        let nobody = dir.path().join("nobody");
        let tick = || async { _ = Timer::after(10 * MS).await };
        block_on(future::or(tick(), async {
            while Async::<UnixStream>::connect(&nobody).await.is_err() {}
        }));
        let socket = Async::<UnixDatagram>::unbound().unwrap();
        block_on(future::or(tick(), async {
            while socket.send_to(b"x", &nobody).await.is_err() {}
        }));
    });
}
