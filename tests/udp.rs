//! UDP: a datagram arrives whole or not at all, each operation waits for its own direction, and
//! what the network says about a peer is heard.

mod common;
#[cfg(unix)]
mod common_io;

use common::{foreign_block_on, within};
use smol::{Async, Timer, block_on, future, prelude::*, spawn, timeout};
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::pin,
    time::Duration,
};

const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn socket() -> (Async<UdpSocket>, SocketAddr) {
    let socket = Async::<UdpSocket>::bind(LOCAL).unwrap();
    let addr = socket.get_ref().local_addr().unwrap();
    (socket, addr)
}

fn pair() -> (Async<UdpSocket>, Async<UdpSocket>) {
    let ((a, a_addr), (b, b_addr)) = (socket(), socket());
    a.get_ref().connect(b_addr).unwrap();
    b.get_ref().connect(a_addr).unwrap();
    (a, b)
}

#[test]
fn datagrams_arrive_with_their_sender() {
    within(10, || {
        block_on(async {
            let ((a, a_addr), (b, b_addr)) = (socket(), socket());
            assert_eq!(a.send_to(b"hello", b_addr).await.unwrap(), 5);
            let mut buffer = [0; 16];
            assert_eq!(b.peek_from(&mut buffer).await.unwrap(), (5, a_addr));
            assert_eq!(b.recv_from(&mut buffer).await.unwrap(), (5, a_addr));
            assert_eq!(&buffer[..5], b"hello");
            // Every way to say where to.
            b.send_to(b"1", (Ipv4Addr::LOCALHOST, a_addr.port())).await.unwrap();
            b.send_to(b"2", ([127, 0, 0, 1], a_addr.port())).await.unwrap();
            b.send_to(b"3", a_addr.to_string()).await.unwrap();
            b.send_to(b"4", ("127.0.0.1", a_addr.port())).await.unwrap();
            b.send_to(b"5", &[a_addr][..]).await.unwrap();
            for expected in b"12345" {
                assert_eq!(a.recv_from(&mut buffer).await.unwrap(), (1, b_addr));
                assert_eq!(buffer[0], *expected);
            }
            let nothing: &[SocketAddr] = &[];
            assert_eq!(a.send_to(b"x", nothing).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        });
    });
}

#[test]
fn a_name_can_be_sent_to() {
    within(20, || {
        block_on(async {
            let ((a, a_addr), (b, b_addr)) = (socket(), socket());
            // `localhost` may be ::1 first, where this socket cannot send.
            match a.send_to(b"hello", ("localhost", b_addr.port())).await {
                Ok(n) => {
                    assert_eq!(n, 5);
                    assert_eq!(b.recv_from(&mut [0; 16]).await.unwrap(), (5, a_addr));
                }
                Err(error) => panic!("{error}"),
            }
        });
    });
}

#[test]
fn connected_sockets_need_no_addresses() {
    within(10, || {
        block_on(async {
            let (a, b) = pair();
            let mut buffer = [0; 16];
            assert_eq!(a.send(b"ping").await.unwrap(), 4);
            assert_eq!(b.peek(&mut buffer).await.unwrap(), 4);
            assert_eq!(b.peek(&mut buffer).await.unwrap(), 4);
            assert_eq!(b.recv(&mut buffer).await.unwrap(), 4);
            assert_eq!(b.send(b"pong!").await.unwrap(), 5);
            assert_eq!(a.recv(&mut buffer).await.unwrap(), 5);
            assert_eq!(&buffer[..5], b"pong!");
        });
    });
}

/// <https://github.com/smol-rs/smol/commit/0e6345d>
#[cfg(unix)]
#[test]
fn every_operation_waits_for_its_own_direction() {
    use common_io::waits_for;
    within(20, || {
        block_on(async {
            let (a, b) = pair();
            let mut buffer = [0; 16];
            let send = || assert_eq!(b.get_ref().send(b"xyz").unwrap(), 3);
            let take = || assert_eq!(a.get_ref().recv(&mut [0; 16]).unwrap(), 3);
            assert_eq!(waits_for("recv", a.recv(&mut buffer), || {}, send).await, 3);
            assert_eq!(waits_for("recv_from", a.recv_from(&mut buffer), || {}, send).await.0, 3);
            assert_eq!(waits_for("peek", a.peek(&mut buffer), || {}, send).await, 3);
            take();
            assert_eq!(waits_for("peek_from", a.peek_from(&mut buffer), || {}, send).await.0, 3);
            take();
            assert_eq!(
                waits_for("read_with", a.read_with(|s| s.recv(&mut buffer)), || {}, send).await,
                3
            );
            waits_for("readable", a.readable(), || {}, send).await;
            take();
            // Sending never waits here, and must not wait for something to read.
            for _ in 0..3 {
                assert_eq!(future::poll_once(a.send(b"x")).await.unwrap().unwrap(), 1);
                assert_eq!(
                    future::poll_once(a.write_with(|s| s.send(b"x"))).await.unwrap().unwrap(),
                    1
                );
                assert!(timeout(Duration::from_secs(5), a.writable()).await.is_ok());
                let to = b.get_ref().local_addr().unwrap();
                let (free, _) = socket();
                assert_eq!(future::poll_once(free.send_to(b"x", to)).await.unwrap().unwrap(), 1);
            }
        });
    });
}

/// For those who write `poll` functions.
#[test]
fn datagrams_can_be_polled_for() {
    use std::task::{Context, Poll};
    within(10, || {
        block_on(async {
            let ((one, here), (two, there)) = (socket(), socket());
            let (waker, wakes) = common::counting_waker();
            let mut cx = Context::from_waker(&waker);
            let mut buf = [0; 8];
            assert!(one.poll_recv_from(&mut cx, &mut buf).is_pending());
            assert!(matches!(two.poll_send_to(&mut cx, b"abc", here), Poll::Ready(Ok(3))));
            while wakes.count() == 0 {
                Timer::after(Duration::from_millis(1)).await;
            }
            let Poll::Ready(Ok(got)) = one.poll_recv_from(&mut cx, &mut buf) else {
                panic!("it was woken and finds nothing");
            };
            assert_eq!((got, &buf[..3]), ((3, there), &b"abc"[..]));
            assert!(one.poll_recv_from(&mut cx, &mut buf).is_pending());
            // An error is told, and no wait.
            let long = vec![0; 100_000];
            assert!(matches!(two.poll_send_to(&mut cx, &long, here), Poll::Ready(Err(_))));
        });
    });
}

#[test]
fn an_empty_datagram_is_a_datagram() {
    within(10, || {
        block_on(async {
            let (a, b) = pair();
            assert_eq!(a.send(b"").await.unwrap(), 0);
            assert_eq!(b.recv(&mut [0; 8]).await.unwrap(), 0);
            // It was taken: there is no second one, and no end of file.
            let mut buffer = [0; 8];
            let mut receiving = pin!(b.recv(&mut buffer));
            assert!(future::poll_once(receiving.as_mut()).await.is_none());
            a.send(b"x").await.unwrap();
            assert_eq!(receiving.await.unwrap(), 1);
            // A buffer without room takes a whole datagram, too.
            a.send(b"long").await.unwrap();
            a.send(b"next").await.unwrap();
            assert_eq!(b.recv(&mut [0; 8][..2]).await.unwrap_or(2), 2);
            assert_eq!(b.recv(&mut [0; 8]).await.unwrap(), 4);
        });
    });
}

#[test]
fn receivers_that_share_a_socket_each_get_whole_datagrams() {
    within(20, || {
        block_on(async {
            let (a, addr) = socket();
            let receivers: Vec<_> = (0..10)
                .map(|_| {
                    let a = a.clone();
                    spawn(async move {
                        let mut buffer = [0; 16];
                        let (n, _) = a.recv_from(&mut buffer).await.unwrap();
                        assert_eq!(&buffer[..n], b"whole");
                    })
                })
                .collect();
            let (b, _) = socket();
            for _ in 0..10 {
                b.send_to(b"whole", addr).await.unwrap();
            }
            for receiver in receivers {
                receiver.await;
            }
        });
    });
}

/// The answer to a datagram nobody wanted: an error that is told to whoever receives.
#[cfg(target_os = "linux")]
#[test]
fn a_refused_datagram_wakes_the_receiver_with_an_error() {
    within(10, || {
        block_on(async {
            let (a, addr) = socket();
            let (gone, gone_addr) = socket();
            drop(gone);
            a.get_ref().connect(gone_addr).unwrap();
            let mut buffer = [0; 8];
            let mut receiving = pin!(a.recv(&mut buffer));
            assert!(future::poll_once(receiving.as_mut()).await.is_none());
            a.send(b"anybody?").await.unwrap();
            assert_eq!(receiving.await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            // It goes on working.
            let back = Async::<UdpSocket>::bind(gone_addr);
            if let Ok(back) = back {
                back.send_to(b"me", addr).await.unwrap();
                assert_eq!(a.recv(&mut [0; 8]).await.unwrap(), 2);
            }
        });
    });
}

#[test]
fn a_datagram_that_is_too_long_is_an_error_and_not_a_wait() {
    within(10, || {
        block_on(async {
            let (a, b) = pair();
            a.send(&vec![0; 100_000]).await.unwrap_err();
            a.send(b"short").await.unwrap();
            assert_eq!(b.recv(&mut [0; 8]).await.unwrap(), 5);
        });
    });
}

#[test]
fn a_flood_of_datagrams_does_not_starve_the_receiver_s_neighbours() {
    within(20, || {
        let (a, addr) = socket();
        let stop = common::Flag::new();
        std::thread::scope(|s| {
            s.spawn(|| {
                let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
                while !stop.is_set() {
                    let _ = sender.send_to(b"flood", addr);
                }
            });
            block_on(async {
                let flood = async {
                    loop {
                        a.recv_from(&mut [0; 8]).await.unwrap();
                    }
                };
                let other = async {
                    for _ in 0..5 {
                        Timer::after(Duration::from_millis(1)).await;
                    }
                };
                flood.or(other).await;
            });
            stop.set();
        });
    });
}

#[test]
fn udp_works_under_a_foreign_block_on() {
    within(10, || {
        foreign_block_on(async {
            let (a, b) = pair();
            let receiving = spawn(async move { b.recv(&mut [0; 8]).await });
            a.send(b"x").await.unwrap();
            assert_eq!(receiving.await.unwrap(), 1);
        });
    });
}

#[test]
fn a_port_in_use_is_an_error_and_the_next_address_is_tried() {
    let (_socket, addr) = socket();
    assert_eq!(Async::<UdpSocket>::bind(addr).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(Async::<UdpSocket>::bind(&[addr, SocketAddr::from(LOCAL)][..]).is_ok());
}

#[test]
fn the_sockets_of_std_can_be_adopted_and_datagrams_cross_families_only_on_purpose() {
    within(10, || {
        block_on(async {
            let socket = Async::try_from(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            assert!(format!("{socket:?}").contains("UdpSocket"));
            let to = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
            assert!(socket.send_to(b"x", to).await.is_err());
            assert!(future::poll_once(socket.recv(&mut [0; 1])).await.is_none());
            let mut empty = pin!(socket.recv_from(&mut []));
            let _ = future::poll_once(empty.as_mut()).await;
        });
    });
}
