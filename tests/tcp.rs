//! TCP: std's types, asynchronous; connects try every address and say truly how they ended; what
//! the peer does is seen at once.

mod common;
#[cfg(unix)]
mod common_io;

use common::{foreign_block_on, within};
use smol::{Async, Timer, block_on, future, prelude::*, spawn, timeout};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    pin::pin,
    time::{Duration, Instant},
};

const MS: Duration = Duration::from_millis(1);
const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn listener() -> (Async<TcpListener>, SocketAddr) {
    let listener = Async::<TcpListener>::bind(LOCAL).unwrap();
    let addr = listener.get_ref().local_addr().unwrap();
    (listener, addr)
}

async fn pair() -> (Async<TcpStream>, Async<TcpStream>) {
    let (listener, addr) = listener();
    let a = Async::<TcpStream>::connect(addr).await.unwrap();
    let (b, _) = listener.accept().await.unwrap();
    (a, b)
}

/// An address that nobody listens on. It stays bound, or another process could be given it.
fn dead_address() -> SocketAddr {
    static BOUND: std::sync::Mutex<Vec<socket2::Socket>> = std::sync::Mutex::new(Vec::new());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&any.into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    BOUND.lock().unwrap().push(socket);
    addr
}

/// Makes `close` send a reset instead of waiting for what is unsent.
fn reset_on_close(stream: &Async<TcpStream>) {
    socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A listener whose queue is full: further connects get no answer. Keep what it returns.
#[cfg(target_os = "linux")]
fn silent_listener() -> (socket2::Socket, SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(LOCAL).into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    for _ in 0..4 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&addr);
        queued.push(socket);
    }
    (listener, addr.as_socket().unwrap(), queued)
}

// ---------- the operations ----------

#[test]
fn a_client_and_a_server_talk() {
    within(10, || {
        block_on(async {
            let (listener, addr) = listener();
            let server = spawn(async move {
                let (mut stream, peer) = listener.accept().await.unwrap();
                let mut request = [0; 4];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(&request, b"ping");
                stream.write_all(b"pong").await.unwrap();
                (stream, peer)
            });
            let mut client = Async::<TcpStream>::connect(addr).await.unwrap();
            client.write_all(b"ping").await.unwrap();
            let mut answer = [0; 4];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"pong");
            let (stream, peer) = server.await;
            assert_eq!(peer, client.get_ref().local_addr().unwrap());
            assert_eq!(stream.get_ref().peer_addr().unwrap(), peer);
            assert_eq!(client.get_ref().peer_addr().unwrap(), addr);
        });
    });
}

/// <https://github.com/smol-rs/smol/commit/0e6345d>
#[cfg(unix)]
#[test]
fn every_operation_waits_for_its_own_direction() {
    use common_io::{fill, waits_for};
    within(20, || {
        block_on(async {
            let (listener, addr) = listener();
            let connect = || drop(TcpStream::connect(addr).unwrap());
            waits_for("accept", listener.accept(), || {}, connect).await;
            let mut incoming = listener.incoming();
            waits_for("incoming", async { incoming.next().await.unwrap() }, || {}, connect).await;

            let (a, b) = pair().await;
            let send = || b.get_ref().write_all(b"x").unwrap();
            let mut buffer = [0; 8];
            assert_eq!(waits_for("peek", a.peek(&mut buffer), || {}, send).await, 1);
            assert_eq!((&a).read(&mut buffer).await.unwrap(), 1);
            assert_eq!(waits_for("read", (&a).read(&mut buffer), || {}, send).await, 1);
            waits_for("readable", a.readable(), || {}, send).await;

            // Until nothing fits any more: the peer's buffers fill up, too.
            let fill_up = || async {
                while fill(a.get_ref()) > 0 {
                    Timer::after(MS).await;
                }
            };
            let mut peer = b.get_ref();
            let mut drain = || while peer.read(&mut [0; 65536]).is_ok_and(|n| n > 0) {};
            fill_up().await;
            waits_for("write", (&a).write(b"x"), send, &mut drain).await;
            fill_up().await;
            waits_for("writable", a.writable(), send, &mut drain).await;
        });
    });
}

#[test]
fn peek_leaves_the_bytes_where_they_are() {
    within(10, || {
        block_on(async {
            let (a, mut b) = pair().await;
            b.write_all(b"xyz").await.unwrap();
            b.close().await.unwrap();
            let mut buffer = [0; 8];
            for _ in 0..3 {
                assert_eq!(a.peek(&mut buffer[..2]).await.unwrap(), 2);
                assert_eq!(&buffer[..2], b"xy");
            }
            let mut all = String::new();
            (&a).read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "xyz");
            assert_eq!(a.peek(&mut buffer).await.unwrap(), 0);
        });
    });
}

#[test]
fn incoming_yields_one_connection_after_the_other() {
    within(10, || {
        block_on(async {
            let (listener, addr) = listener();
            let clients = spawn(async move {
                for i in 0..50u8 {
                    let mut stream = Async::<TcpStream>::connect(addr).await.unwrap();
                    stream.write_all(&[i]).await.unwrap();
                }
            });
            let mut seen: Vec<u8> = Vec::new();
            let mut incoming = listener.incoming().take(50);
            while let Some(stream) = incoming.next().await {
                let mut byte = [0];
                stream.unwrap().read_exact(&mut byte).await.unwrap();
                seen.push(byte[0]);
            }
            assert_eq!(seen, (0..50).collect::<Vec<_>>());
            clients.await;
        });
    });
}

#[test]
fn connections_made_before_anybody_accepts_are_all_accepted() {
    within(20, || {
        block_on(async {
            let (listener, addr) = listener();
            let mut clients = Vec::new();
            for _ in 0..100 {
                clients.push(Async::<TcpStream>::connect(addr).await.unwrap());
            }
            // One event announced them all.
            for _ in 0..100 {
                listener.accept().await.unwrap();
            }
            assert!(future::poll_once(listener.accept()).await.is_none());
        });
    });
}

/// std asks for a queue of 128; what does not fit in is tried again after a second, then after two.
#[cfg(target_os = "linux")]
#[test]
fn six_hundred_connections_made_before_anybody_accepts_find_room() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let files = getrlimit(Resource::Nofile).maximum;
    if allowed.trim().parse::<u32>().unwrap() < 600 || files.is_some_and(|most| most < 1_500) {
        return eprintln!("skipped: the system allows {allowed} connections and {files:?} files");
    }
    common::fresh_process(30, &[], || {
        setrlimit(Resource::Nofile, Rlimit { current: Some(1_500), maximum: files }).unwrap();
        block_on(async {
            let (listener, addr) = listener();
            let start = Instant::now();
            let connects: Vec<_> =
                (0..600).map(|_| spawn(Async::<TcpStream>::connect(addr))).collect();
            let mut clients = Vec::new();
            for connect in connects {
                let connected = timeout(Duration::from_secs(10), connect).await;
                clients.push(connected.expect("the queue has no room").unwrap());
            }
            for _ in 0..600 {
                listener.accept().await.unwrap();
            }
            eprintln!("600 connections in {:?}", start.elapsed());
            // A listener of one's own keeps the queue that it has.
            let own = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let own = own.unwrap();
            own.bind(&SocketAddr::from(LOCAL).into()).unwrap();
            own.listen(0).unwrap();
            let addr = own.local_addr().unwrap().as_socket().unwrap();
            let own = Async::<TcpListener>::try_from(TcpListener::from(own)).unwrap();
            let _first = Async::<TcpStream>::connect(addr).await.unwrap();
            let second = timeout(50 * MS, Async::<TcpStream>::connect(addr)).await;
            second.expect_err("the queue of a listener that was made by hand was changed");
            own.accept().await.unwrap();
        });
    });
}

#[test]
fn many_accept_on_one_listener_and_each_gets_a_connection() {
    within(20, || {
        block_on(async {
            let (listener, addr) = listener();
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let listener = listener.clone();
                    spawn(async move { listener.accept().await.unwrap() })
                })
                .collect();
            let mut clients = Vec::new();
            for _ in 0..20 {
                clients.push(Async::<TcpStream>::connect(addr).await.unwrap());
            }
            for task in tasks {
                task.await;
            }
        });
    });
}

/// For those who write `poll` functions: a stream of connections by hand.
#[test]
fn connections_can_be_polled_for() {
    use std::task::{Context, Poll};
    within(10, || {
        block_on(async {
            let (listener, addr) = listener();
            let (waker, wakes) = common::counting_waker();
            let mut cx = Context::from_waker(&waker);
            assert!(listener.poll_accept(&mut cx).is_pending());
            let client = Async::<TcpStream>::connect(addr).await.unwrap();
            while wakes.count() == 0 {
                Timer::after(MS).await;
            }
            let Poll::Ready(Ok((mut server, peer))) = listener.poll_accept(&mut cx) else {
                panic!("it was woken and finds nothing");
            };
            assert_eq!(peer, client.get_ref().local_addr().unwrap());
            assert!(listener.poll_accept(&mut cx).is_pending());
            (&client).write_all(b"x").await.unwrap();
            assert_eq!(server.read(&mut [0; 2]).await.unwrap(), 1);
            // The waiters of one kind do not disturb those of the other.
            let accepting = spawn({
                let listener = listener.clone();
                async move { std::future::poll_fn(|cx| listener.poll_accept(cx)).await }
            });
            let both = future::zip(accepting, listener.accept());
            let connects =
                future::zip(Async::<TcpStream>::connect(addr), Async::<TcpStream>::connect(addr));
            let ((one, two), _connected) = future::zip(both, connects).await;
            assert_ne!(one.unwrap().1, two.unwrap().1);
        });
    });
}

#[test]
fn the_streams_of_std_can_be_adopted() {
    within(10, || {
        block_on(async {
            let std_listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = std_listener.local_addr().unwrap();
            let client = TcpStream::connect(addr).unwrap();
            let listener = Async::try_from(std_listener).unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let client = Async::<TcpStream>::try_from(client).unwrap();
            let mut reading = pin!(async { (&client).read(&mut [0; 4]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            (&server).write_all(b"abc").await.unwrap();
            assert_eq!(reading.await.unwrap(), 3);
            assert!(format!("{client:?} {server:?} {listener:?}").contains("TcpListener"));
        });
    });
}

#[test]
fn megabytes_pass_in_both_directions_at_once() {
    within(60, || {
        block_on(async {
            let (a, b) = pair().await;
            let data: Vec<u8> = (0..2_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
            let mut tasks = Vec::new();
            for stream in [a, b] {
                let (mut reader, mut writer) = (stream.clone(), stream);
                let (sent, expected) = (data.clone(), data.clone());
                tasks.push(spawn(async move {
                    writer.write_all(&sent).await.unwrap();
                    writer.close().await.unwrap();
                }));
                tasks.push(spawn(async move {
                    let mut received = Vec::new();
                    reader.read_to_end(&mut received).await.unwrap();
                    assert!(received == expected);
                }));
            }
            for task in tasks {
                task.await;
            }
        });
    });
}

/// <https://github.com/smol-rs/smol/issues/161>
#[test]
fn a_reader_and_a_writer_blocked_on_one_stream_both_go_on() {
    within(20, || {
        block_on(async {
            let (a, b) = pair().await;
            let (reader, writer) = (a.clone(), a);
            let size = 8_000_000; // more than the buffers of both sides
            let writing = spawn(async move { (&writer).write_all(&vec![1; size]).await });
            let reading = spawn(async move { (&reader).read(&mut [0; 1]).await });
            // The peer reads only: the writer goes on, the reader stays.
            let mut received = 0;
            let mut buffer = vec![0; 65536];
            while received < size {
                received += (&b).read(&mut buffer).await.unwrap();
            }
            writing.await.unwrap();
            assert!(!reading.is_finished());
            (&b).write_all(b"x").await.unwrap();
            assert_eq!(reading.await.unwrap(), 1);
        });
    });
}

// ---------- how connections end ----------

#[test]
fn the_end_of_the_peer_reaches_a_reader_that_waits() {
    within(10, || {
        block_on(async {
            let (a, b) = pair().await;
            let mut reading = pin!(async { (&a).read(&mut [0; 8]).await });
            let mut readable = pin!(a.readable());
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            assert!(future::poll_once(readable.as_mut()).await.is_none());
            drop(b);
            assert_eq!(reading.await.unwrap(), 0);
            readable.await.unwrap();
        });
    });
}

/// <https://github.com/smol-rs/smol/issues/131>
#[test]
fn a_reset_reaches_a_reader_and_a_writer_that_wait() {
    within(20, || {
        block_on(async {
            for both in [false, true] {
                let (a, b) = pair().await;
                let (a1, a2) = (a.clone(), a.clone());
                let reading = spawn(async move { (&a1).read(&mut [0; 8]).await });
                let writing =
                    both.then(|| spawn(async move { (&a2).write_all(&vec![1; 10_000_000]).await }));
                Timer::after(5 * MS).await; // the writer gets stuck
                reset_on_close(&b);
                drop(b);
                match writing {
                    None => {
                        assert_eq!(reading.await.unwrap_err().kind(), ErrorKind::ConnectionReset)
                    }
                    Some(writing) => {
                        // The error of a reset is told once; the other one sees an end.
                        let results = (reading.await.map(|_| ()), writing.await);
                        assert!(results.1.is_err(), "{results:?}");
                    }
                }
                assert!((&a).write_all(b"x").await.is_err());
            }
        });
    });
}

#[test]
fn close_shuts_down_the_writing_half_and_succeeds_after_a_reset() {
    within(10, || {
        block_on(async {
            let (mut a, mut b) = pair().await;
            a.write_all(b"last words").await.unwrap();
            a.flush().await.unwrap();
            a.close().await.unwrap();
            let mut all = String::new();
            b.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "last words");
            b.write_all(b"still here").await.unwrap();
            reset_on_close(&b);
            drop(b);
            // Wait for the reset to arrive.
            while a.read(&mut [0; 16]).await.is_ok_and(|n| n > 0) {}
            a.close().await.unwrap();
            a.close().await.unwrap();
        });
    });
}

/// A server that gives up on a slow client must be able to say so.
#[cfg(unix)]
#[test]
fn flush_and_close_of_a_connection_that_is_full_do_not_wait_for_the_peer() {
    within(30, || {
        block_on(async {
            let (mut a, mut b) = pair().await;
            let late = timeout(20 * MS, a.write_all(&vec![7; 30_000_000])).await;
            late.expect_err("the peer does not read");
            let mut full = 0;
            while common_io::fill(a.get_ref()) > 0 {
                full += 1;
                Timer::after(MS).await;
            }
            assert!(full < 10_000);
            let mut clone = a.clone();
            // Somebody else still waits for room.
            let mut writing = pin!(async { (&a).write(b"x").await });
            assert!(future::poll_once(writing.as_mut()).await.is_none());
            let patience = Duration::from_secs(5);
            for _ in 0..2 {
                timeout(patience, clone.flush()).await.expect("flush waits").unwrap();
                timeout(patience, (&a).flush()).await.expect("flush waits").unwrap();
            }
            for _ in 0..2 {
                timeout(patience, clone.close()).await.expect("close waits").unwrap();
                timeout(patience, (&a).close()).await.expect("close waits").unwrap();
            }
            // Whoever waited for room learns that there will be none.
            assert_eq!(writing.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            // What had been taken arrives, and then the end.
            let mut all = Vec::new();
            b.read_to_end(&mut all).await.unwrap();
            assert!(all.len() > 4096 && all.iter().all(|byte| *byte == 7), "{}", all.len());
        });
        foreign_block_on(async {
            let (mut a, _b) = pair().await;
            while timeout(20 * MS, a.write(&[7; 65536])).await.is_ok() {}
            a.flush().await.unwrap();
            a.close().await.unwrap();
        });
    });
}

#[test]
fn writing_to_a_closed_connection_is_an_error_and_no_signal() {
    within(10, || {
        block_on(async {
            let (a, b) = pair().await;
            drop(b);
            let result = async {
                loop {
                    (&a).write_all(b"x").await?;
                    future::yield_now().await;
                }
            };
            let error: io::Error = Result::<(), _>::unwrap_err(result.await);
            assert!(
                matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
                "{error}"
            );
        });
    });
}

#[test]
fn a_shutdown_by_std_is_seen_by_those_who_wait() {
    within(10, || {
        block_on(async {
            let (a, b) = pair().await;
            let mut reading = pin!(async { (&a).read(&mut [0; 8]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            a.get_ref().shutdown(Shutdown::Read).unwrap();
            assert_eq!(reading.await.unwrap(), 0);
            let mut reading = pin!(async { (&b).read(&mut [0; 8]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            a.get_ref().shutdown(Shutdown::Write).unwrap();
            assert_eq!(reading.await.unwrap(), 0);
        });
    });
}

// ---------- connecting ----------

#[test]
fn a_refused_connect_fails_as_it_does_in_std() {
    within(10, || {
        let addr = dead_address();
        let expected = TcpStream::connect(addr).unwrap_err();
        let error = block_on(Async::<TcpStream>::connect(addr)).unwrap_err();
        assert_eq!(error.kind(), expected.kind());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
        let error = foreign_block_on(Async::<TcpStream>::connect(addr)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_connect_that_std_refuses_to_try_fails_alike() {
    within(10, || {
        // A broadcast address; and nothing at all.
        let addr = SocketAddr::from(([255, 255, 255, 255], 9));
        if let Err(expected) = TcpStream::connect_timeout(&addr, Duration::from_secs(1)) {
            let error =
                block_on(timeout(Duration::from_secs(5), Async::<TcpStream>::connect(addr)));
            assert_eq!(error.unwrap().unwrap_err().kind(), expected.kind());
        }
        let nothing: &[SocketAddr] = &[];
        let error = block_on(Async::<TcpStream>::connect(nothing)).unwrap_err();
        assert_eq!(error.kind(), TcpStream::connect(nothing).unwrap_err().kind());
    });
}

#[test]
fn connect_tries_one_address_after_the_other() {
    within(10, || {
        block_on(async {
            let (listener, live) = listener();
            let addrs = [dead_address(), dead_address(), live];
            let stream = Async::<TcpStream>::connect(&addrs[..]).await.unwrap();
            assert_eq!(stream.get_ref().peer_addr().unwrap(), live);
            listener.accept().await.unwrap();
            // The first that answers.
            let stream = Async::<TcpStream>::connect(vec![live, addrs[0]]).await.unwrap();
            assert_eq!(stream.get_ref().peer_addr().unwrap(), live);
        });
    });
}

#[test]
fn the_error_of_a_connect_names_every_address_that_failed() {
    within(10, || {
        let addrs = [
            dead_address(),
            dead_address(),
            SocketAddr::from((Ipv6Addr::LOCALHOST, dead_address().port())),
        ];
        let error = block_on(Async::<TcpStream>::connect(&addrs[..])).unwrap_err();
        for addr in addrs {
            assert!(error.to_string().contains(&addr.to_string()), "{error}");
        }
        let error = block_on(Async::<TcpStream>::connect(&addrs[..2])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

/// RFC 8305: the next address gets its chance after 250 ms.
/// <https://github.com/tokio-rs/tokio/issues/8421>
#[cfg(target_os = "linux")]
#[test]
fn an_address_that_does_not_answer_holds_up_a_connect_only_for_a_moment() {
    common::fresh_process(30, &[], || {
        let (_listener, silent, _queued) = silent_listener();
        let (_live_listener, live) = listener();
        let before = common::open_fds();
        block_on(async {
            // A connect to the silent one alone does wait.
            let mut alone = pin!(Async::<TcpStream>::connect(silent));
            assert!(future::poll_once(alone.as_mut()).await.is_none());
            let start = Instant::now();
            let stream = Async::<TcpStream>::connect(&[silent, live][..]).await.unwrap();
            assert_eq!(stream.get_ref().peer_addr().unwrap(), live);
            assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
            // An address that is refused meanwhile does not end the attempt at the silent one; nor
            // does it make the next wait.
            let start = Instant::now();
            let stream =
                Async::<TcpStream>::connect(&[silent, dead_address(), live][..]).await.unwrap();
            assert_eq!(stream.get_ref().peer_addr().unwrap(), live);
            assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
            timeout(20 * MS, alone).await.unwrap_err();
        });
        // Nothing is left of those who lost or were given up, though the reactor has seen no event
        // of theirs.
        let after = common::open_fds();
        // The poller has three: epoll, eventfd, timerfd.
        assert!(after <= before + 4, "{before} descriptors before, {after} after");
        let again = common::open_fds();
        block_on(async {
            let _ = timeout(MS, Async::<TcpStream>::connect(&[silent, silent, silent][..])).await;
            drop(Async::<TcpStream>::connect(&[silent, live][..]).await);
        });
        assert_eq!(common::open_fds(), again);
    });
}

/// As soon as the queue has room, the connect must come through.
#[cfg(target_os = "linux")]
#[test]
fn a_connect_to_a_full_queue_comes_through_when_there_is_room() {
    within(30, || {
        let (silent, addr, queued) = silent_listener();
        let connecting = spawn(Async::<TcpStream>::connect(addr));
        block_on(async {
            Timer::after(10 * MS).await;
            assert!(!connecting.is_finished());
            // The kernel tries again after a second.
            let listener = Async::new(silent).unwrap();
            let accepting = spawn(async move {
                loop {
                    drop(listener.read_with(|l| l.accept()).await.unwrap());
                }
            });
            connecting.await.unwrap();
            drop(accepting);
        });
        drop(queued);
    });
}

/// The kernel gives up on an address that does not answer: that error comes through as it is.
#[cfg(target_os = "linux")]
#[test]
fn a_connect_that_the_kernel_gives_up_is_told_as_timed_out() {
    use socket2::{Domain, Socket, Type};
    within(30, || {
        let (_listener, silent, _queued) = silent_listener();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_tcp_user_timeout(Some(10 * MS)).unwrap();
        let socket = Async::new(socket).unwrap();
        block_on(async {
            let _ = socket.get_ref().connect(&silent.into());
            socket.writable().await.unwrap();
            let error = socket.get_ref().take_error().unwrap().expect("it did not connect");
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    });
}

#[test]
fn both_families_are_spoken() {
    within(10, || {
        block_on(async {
            let listener = match Async::<TcpListener>::bind((Ipv6Addr::LOCALHOST, 0)) {
                Ok(listener) => listener,
                Err(_) => return, // no IPv6 here
            };
            let addr = listener.get_ref().local_addr().unwrap();
            let stream = Async::<TcpStream>::connect(addr).await.unwrap();
            assert!(stream.get_ref().local_addr().unwrap().is_ipv6());
            let (_, peer) = listener.accept().await.unwrap();
            assert!(peer.is_ipv6());
            // A name that may stand for both.
            let (v4, addr4) = self::listener();
            let stream = Async::<TcpStream>::connect(("localhost", addr4.port())).await.unwrap();
            assert_eq!(stream.get_ref().peer_addr().unwrap(), addr4);
            v4.accept().await.unwrap();
        });
    });
}

#[test]
fn a_connect_works_as_the_first_thing_of_all() {
    common::fresh_process(10, &[], || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        foreign_block_on(Async::<TcpStream>::connect(addr)).unwrap();
    });
}

#[test]
fn a_connect_can_be_given_up_a_thousand_times() {
    within(30, || {
        block_on(async {
            let (listener, addr) = listener();
            for _ in 0..1_000 {
                let _ = future::poll_once(Async::<TcpStream>::connect(addr)).await;
                // Make room in the queue; some of them got through.
                while future::poll_once(listener.accept()).await.is_some() {}
            }
            let (stream, accepted) =
                future::zip(Async::<TcpStream>::connect(addr), listener.accept()).await;
            stream.unwrap();
            accepted.unwrap();
        });
    });
}

/// A socket of one's own, connected by hand. A fresh one reports a hang-up, which says nothing
/// about the connect.
#[cfg(unix)]
#[test]
fn a_socket_registered_before_it_connects_tells_how_the_connect_went() {
    use socket2::{Domain, SockAddr, Socket, Type};
    within(10, || {
        block_on(async {
            let (listener, live) = listener();
            for (addr, refused) in [(live, false), (dead_address(), true)] {
                let socket =
                    Async::new(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).unwrap();
                // Let the reactor see whatever the unconnected socket says.
                let _ = timeout(2 * MS, socket.writable()).await;
                match socket.get_ref().connect(&SockAddr::from(addr)) {
                    Ok(()) => {}
                    Err(e) => assert_eq!(
                        e.raw_os_error(),
                        Some(rustix::io::Errno::INPROGRESS.raw_os_error()),
                        "{e}"
                    ),
                }
                socket.writable().await.unwrap();
                let error = socket.get_ref().take_error().unwrap();
                assert_eq!(
                    error.is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused),
                    refused
                );
                assert_eq!(socket.get_ref().peer_addr().is_ok(), !refused);
            }
            listener.accept().await.unwrap();
        });
    });
}

/// Two sides that connect to each other at the same time, here: one side that connects to itself.
#[cfg(target_os = "linux")]
#[test]
fn a_socket_that_connects_to_itself_is_its_own_peer() {
    use socket2::{Domain, Socket, Type};
    within(10, || {
        block_on(async {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(LOCAL).into()).unwrap();
            let own = socket.local_addr().unwrap();
            let socket = Async::new(socket).unwrap();
            let _ = socket.get_ref().connect(&own);
            socket.writable().await.unwrap();
            let stream = Async::new(TcpStream::from(socket.into_inner().unwrap())).unwrap();
            (&stream).write_all(b"me").await.unwrap();
            assert_eq!((&stream).read(&mut [0; 8]).await.unwrap(), 2);
        });
    });
}

// ---------- binding ----------

#[test]
fn a_port_in_use_is_an_error() {
    let (_listener, addr) = listener();
    let error = Async::<TcpListener>::bind(addr).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert_eq!(error.kind(), TcpListener::bind(addr).unwrap_err().kind());
}

#[test]
fn an_address_that_is_not_ours_cannot_be_bound() {
    // From a block reserved for documentation.
    let error = Async::<TcpListener>::bind((Ipv4Addr::new(192, 0, 2, 1), 0)).unwrap_err();
    assert_eq!(
        error.kind(),
        TcpListener::bind((Ipv4Addr::new(192, 0, 2, 1), 0)).unwrap_err().kind()
    );
}

#[test]
fn bind_takes_the_first_address_that_works() {
    let (_listener, taken) = listener();
    let addrs = [taken, SocketAddr::from(LOCAL)];
    let other = Async::<TcpListener>::bind(&addrs[..]).unwrap();
    assert_ne!(other.get_ref().local_addr().unwrap(), taken);
    assert!(Async::<TcpListener>::bind("127.0.0.1:0").is_ok());
    assert!(Async::<TcpListener>::bind(("localhost", 0)).is_ok());
}

#[cfg(unix)]
#[test]
fn a_port_can_be_bound_again_right_after_its_listener_is_gone() {
    within(10, || {
        block_on(async {
            let (listener, addr) = listener();
            let client = Async::<TcpStream>::connect(addr).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            drop((server, listener)); // this side closes first: it keeps the connection's ashes
            drop(client);
            Async::<TcpListener>::bind(addr).unwrap();
        });
    });
}

// ---------- short reads, which the runtime takes for "no more for now" ----------

#[test]
fn the_last_bytes_and_the_end_that_arrive_together_are_both_read() {
    within(10, || {
        block_on(async {
            let (mut reader, peer) = pair().await;
            let mut buf = [0; 64];
            // Registered with the kernel, and waiting.
            assert!(future::poll_once(reader.read(&mut buf)).await.is_none());
            peer.get_ref().write_all(b"last").unwrap();
            peer.get_ref().shutdown(Shutdown::Write).unwrap();
            // Both are there before anybody asks the kernel.
            reader.readable().await.unwrap();
            assert_eq!(reader.read(&mut buf).await.unwrap(), 4);
            assert_eq!(reader.read(&mut buf).await.unwrap(), 0);
        })
    })
}

#[test]
fn an_end_that_comes_after_a_short_read_is_seen() {
    within(10, || {
        block_on(async {
            let (mut reader, mut peer) = pair().await;
            let mut buf = [0; 64];
            for _ in 0..100 {
                peer.write_all(b"some").await.unwrap();
                assert_eq!(reader.read(&mut buf).await.unwrap(), 4);
            }
            peer.close().await.unwrap();
            assert_eq!(reader.read(&mut buf).await.unwrap(), 0);
        })
    })
}

#[test]
fn urgent_data_cuts_a_read_short_and_hides_nothing() {
    within(10, || {
        block_on(async {
            let (mut reader, peer) = pair().await;
            let mut buf = [0; 64];
            assert!(future::poll_once(reader.read(&mut buf)).await.is_none());
            let peer = socket2::SockRef::from(peer.get_ref());
            peer.send(b"one").unwrap();
            assert_eq!(peer.send_out_of_band(b"!").unwrap(), 1);
            peer.send(b"two").unwrap();
            let mut text = Vec::new();
            while text.len() < 6 {
                let len = reader.read(&mut buf).await.unwrap();
                text.extend_from_slice(&buf[..len]);
            }
            assert_eq!(text, b"onetwo");
        })
    })
}
