//! Addresses: whatever people type is understood as std understands it; numbers need no help, names
//! are looked up without blocking anybody.

mod common;

use common::{foreign_block_on, fresh_process, within};
use smol::{Async, Timer, block_on, future, resolve, spawn, timeout, unblock};
use std::{
    io::ErrorKind,
    net::{
        IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener,
        ToSocketAddrs, UdpSocket,
    },
    sync::mpsc,
    time::Duration,
};

#[test]
fn every_way_to_write_an_address_is_understood() {
    within(10, || {
        block_on(async {
            let v4 = SocketAddr::from(([127, 0, 0, 1], 80));
            let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 80));
            let one = vec![v4];
            let six = vec![v6];
            assert_eq!(resolve("127.0.0.1:80").await.unwrap(), one);
            assert_eq!(resolve(String::from("127.0.0.1:80")).await.unwrap(), one);
            assert_eq!(resolve(&String::from("127.0.0.1:80")).await.unwrap(), one);
            assert_eq!(resolve("[::1]:80").await.unwrap(), six);
            assert_eq!(resolve(("127.0.0.1", 80)).await.unwrap(), one);
            assert_eq!(resolve((String::from("127.0.0.1"), 80)).await.unwrap(), one);
            assert_eq!(resolve(("::1", 80)).await.unwrap(), six);
            assert_eq!(resolve(([127, 0, 0, 1], 80)).await.unwrap(), one);
            assert_eq!(resolve(([0, 0, 0, 0, 0, 0, 0, 1], 80)).await.unwrap(), six);
            assert_eq!(resolve((Ipv4Addr::LOCALHOST, 80)).await.unwrap(), one);
            assert_eq!(resolve((Ipv6Addr::LOCALHOST, 80)).await.unwrap(), six);
            assert_eq!(resolve((IpAddr::from(Ipv4Addr::LOCALHOST), 80)).await.unwrap(), one);
            assert_eq!(resolve(v4).await.unwrap(), one);
            assert_eq!(resolve(&v4).await.unwrap(), one);
            assert_eq!(resolve(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80)).await.unwrap(), one);
            assert_eq!(
                resolve(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 80, 0, 0)).await.unwrap(),
                six
            );
            assert_eq!(resolve(&[v4, v6][..]).await.unwrap(), [v4, v6]);
            assert_eq!(resolve(vec![v6, v4]).await.unwrap(), [v6, v4]);
            let nothing: &[SocketAddr] = &[];
            assert_eq!(resolve(nothing).await.unwrap(), []);
            // What belongs to an IPv6 address stays with it.
            let scoped = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 80, 7, 3);
            assert_eq!(resolve(scoped).await.unwrap(), [SocketAddr::V6(scoped)]);
            assert_eq!(
                resolve("[fe80::1%3]:80").await.unwrap(),
                "[fe80::1%3]:80".to_socket_addrs().unwrap().collect::<Vec<_>>()
            );
        });
    });
}

#[test]
fn the_local_host_is_found_by_name() {
    within(30, || {
        block_on(async {
            for addrs in [
                resolve("localhost:80").await,
                resolve(("localhost", 80)).await,
                resolve(String::from("localhost:80")).await,
                resolve((String::from("localhost"), 80)).await,
            ] {
                let addrs = addrs.unwrap();
                assert!(!addrs.is_empty());
                assert!(
                    addrs.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 80),
                    "{addrs:?}"
                );
            }
        });
        assert!(!foreign_block_on(resolve("localhost:80")).unwrap().is_empty());
        assert!(
            !foreign_block_on(spawn(async { resolve("localhost:80").await })).unwrap().is_empty()
        );
    });
}

#[test]
fn what_is_no_address_is_an_error_as_in_std() {
    within(30, || {
        block_on(async {
            for text in [
                "",
                "127.0.0.1",
                "localhost",
                "localhost:",
                "localhost:port",
                "localhost:99999",
                "localhost:-1",
                "[::1]",
            ] {
                let error = resolve(text).await.unwrap_err();
                let expected = text.to_socket_addrs().unwrap_err();
                assert_eq!(
                    error.kind(),
                    expected.kind(),
                    "{text:?}: {error} instead of {expected}"
                );
                assert!(!error.to_string().is_empty());
            }
            assert_eq!(
                resolve(("zero\0inside", 80)).await.unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        });
    });
}

#[test]
fn a_name_that_does_not_resolve_is_an_error() {
    within(60, || {
        block_on(async {
            // The first is refused by the resolver itself: no label may be that long.
            let too_long = format!("{}.invalid", "x".repeat(300));
            resolve((too_long.as_str(), 80)).await.unwrap_err();
            Async::<TcpListener>::bind((too_long.as_str(), 0)).unwrap_err();
            Async::<std::net::TcpStream>::connect((too_long.clone(), 80)).await.unwrap_err();
            Async::<UdpSocket>::bind(([127, 0, 0, 1], 0))
                .unwrap()
                .send_to(b"x", (too_long.as_str(), 9))
                .await
                .unwrap_err();
            // For the second it may ask the network, which may take its time; others do not wait
            // for it.
            match timeout(Duration::from_secs(10), resolve("name.invalid:80")).await {
                Ok(result) => drop(result.unwrap_err()),
                Err(_) => eprintln!("this network gives no answer about `name.invalid`"),
            }
        });
    });
}

/// With a pool of one thread, and that one busy, a name has to wait; a number has not.
#[test]
fn numeric_addresses_do_not_wait_for_the_pool() {
    fresh_process(30, &[("BLOCKING_MAX_THREADS", "1")], || {
        let (release, released) = mpsc::channel::<()>();
        let (started, starting) = mpsc::channel();
        let busy = unblock(move || {
            started.send(()).unwrap();
            released.recv().unwrap_err()
        });
        starting.recv().unwrap();
        block_on(async {
            let v4 = SocketAddr::from(([127, 0, 0, 1], 80));
            assert_eq!(future::poll_once(resolve("127.0.0.1:80")).await.unwrap().unwrap(), [v4]);
            assert_eq!(future::poll_once(resolve(("127.0.0.1", 80))).await.unwrap().unwrap(), [v4]);
            assert_eq!(
                future::poll_once(resolve((String::from("::1"), 80))).await.unwrap().unwrap().len(),
                1
            );
            assert_eq!(future::poll_once(resolve(v4)).await.unwrap().unwrap(), [v4]);
            assert_eq!(future::poll_once(resolve(vec![v4])).await.unwrap().unwrap(), [v4]);
            let listener = Async::<TcpListener>::bind("127.0.0.1:0").unwrap();
            let text = listener.get_ref().local_addr().unwrap().to_string();
            let connect = Async::<std::net::TcpStream>::connect(text);
            let (stream, _) = future::try_zip(connect, listener.accept()).await.unwrap();
            drop(stream);
            let udp = Async::<UdpSocket>::bind("127.0.0.1:0").unwrap();
            udp.send_to(b"x", udp.get_ref().local_addr().unwrap().to_string()).await.unwrap();

            // A name waits, but does not block the thread.
            let name = spawn(resolve("localhost:80"));
            Timer::after(Duration::from_millis(5)).await;
            assert!(!name.is_finished());
            drop(release);
            busy.await;
            assert!(!name.await.unwrap().is_empty());
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn numeric_addresses_start_no_thread() {
    fresh_process(10, &[], || {
        let before = common::threads().len();
        block_on(async {
            resolve("127.0.0.1:80").await.unwrap();
            resolve(("::1", 80)).await.unwrap();
            Async::<UdpSocket>::bind("127.0.0.1:0").unwrap();
        });
        assert_eq!(common::threads().len(), before, "{:?}", common::threads());
    });
}

#[test]
fn many_names_are_looked_up_at_once_and_lookups_can_be_given_up() {
    within(30, || {
        block_on(async {
            let tasks: Vec<_> =
                (1..=50u16).map(|port| spawn(resolve(("localhost", port)))).collect();
            for _ in 0..20 {
                let _ = future::poll_once(resolve("localhost:80")).await;
            }
            for (port, task) in (1..=50).zip(tasks) {
                assert_eq!(task.await.unwrap()[0].port(), port);
            }
        });
    });
}
