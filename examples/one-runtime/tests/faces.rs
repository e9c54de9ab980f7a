//! What the faces of async-io, async-executor and blocking have beyond ours.

#![cfg(unix)]

mod common;

use async_executor::{Executor, LocalExecutor, StaticExecutor};
use async_io::{Async, IoSafe, Timer};
use common::within_a_minute;
use smol::{future, prelude::*};
use std::{
    cell::Cell,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    sync::Arc,
    time::Duration,
};

#[test]
fn what_is_read_and_written_through_a_mutable_reference_works() {
    /// Counts what goes through it, and so cannot do with `&self`.
    struct Counted(UnixStream, usize);

    impl AsFd for Counted {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Read for Counted {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf).inspect(|len| self.1 += len)
        }
    }

    impl Write for Counted {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.write(buf).inspect(|len| self.1 += len)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    #[allow(unsafe_code)]
    // SAFETY: the stream stays where it is.
    unsafe impl IoSafe for Counted {}

    within_a_minute(async {
        let (left, right) = UnixStream::pair().unwrap();
        let mut left = Async::new(Counted(left, 0)).unwrap();
        let mut right = Async::new(Counted(right, 0)).unwrap();
        let sent = vec![1; 1 << 20];
        // A task of its own, which nothing wakes but its stream.
        let receive = smol::spawn(async move {
            let mut received = Vec::new();
            right.read_to_end(&mut received).await.unwrap();
            (received, right.get_ref().1)
        });
        left.write_all(&sent).await.unwrap();
        assert_eq!(left.into_inner().unwrap().1, 1 << 20); // and closed
        let (received, read) = receive.await;
        assert_eq!(read, 1 << 20);
        assert!(received == sent);
    });
}

#[test]
fn what_is_borrowed_can_be_waited_for() {
    within_a_minute(async {
        let (left, right) = UnixStream::pair().unwrap();
        let borrowed = Async::new(&right).unwrap();
        let mut waiting = borrowed.readable();
        assert!(future::poll_once(&mut waiting).await.is_none(), "there is nothing to read");
        let write = async { (&left).write_all(b"x").unwrap() };
        let (ready, ()) = future::zip(waiting, write).await;
        ready.unwrap();
        assert_eq!((&right).read(&mut [0; 2]).unwrap(), 1);
    });
}

#[test]
fn a_socket_waits_in_futures_that_have_names_and_owners() {
    within_a_minute(async {
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let addr = listener.get_ref().local_addr().unwrap();
        let connect = Async::<TcpStream>::connect(addr);
        let (client, accepted) = future::try_zip(connect, listener.accept()).await.unwrap();
        let (client, server) = (Arc::new(client), Arc::new(accepted.0));
        let mut waiting: async_io::ReadableOwned<TcpStream> = server.clone().readable_owned();
        assert!(future::poll_once(&mut waiting).await.is_none(), "there is nothing to read");
        let waiting = smol::spawn(waiting);
        client.clone().writable_owned().await.unwrap();
        (&*client).write_all(b"news").await.unwrap();
        waiting.await.unwrap();
        let mut buf = [0; 8];
        assert_eq!(server.peek(&mut buf).await.unwrap(), 4);
        assert_eq!((&*server).read(&mut buf).await.unwrap(), 4);
    });
}

#[test]
fn closing_a_socket_does_not_shut_it_down() {
    within_a_minute(async {
        let (mut left, mut right) = Async::<UnixStream>::pair().unwrap();
        left.close().await.unwrap();
        left.write_all(b"more").await.unwrap();
        let mut buf = [0; 4];
        right.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"more");
    });
}

#[test]
fn a_handle_becomes_a_descriptor_and_comes_back() {
    within_a_minute(async {
        let (left, right) = UnixStream::pair().unwrap();
        let left = Async::<UnixStream>::try_from(OwnedFd::from(left)).unwrap();
        let mut left = Async::<UnixStream>::try_from(OwnedFd::try_from(left).unwrap()).unwrap();
        let mut right = Async::try_from(right).unwrap();
        left.write_all(b"hello").await.unwrap();
        drop(left);
        let mut text = String::new();
        right.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    });
}

#[test]
fn executors_live_in_statics_are_leaked_and_spawn_many() {
    static EXECUTOR: StaticExecutor = StaticExecutor::new();

    within_a_minute(async {
        let task = EXECUTOR.spawn(async { Timer::after(Duration::from_millis(1)).await });
        EXECUTOR.run(task).await;

        let leaked = Executor::new().leak();
        assert_eq!(leaked.run(leaked.spawn(async { 1 })).await, 1);
        let ran = Rc::new(Cell::new(false));
        let local = LocalExecutor::new().leak();
        local
            .run(local.spawn({
                let ran = ran.clone();
                async move { ran.set(true) }
            }))
            .await;
        assert!(ran.get());

        let (executor, mut tasks) = (Executor::new(), Vec::new());
        executor.spawn_many((0..100).map(future::ready), &mut tasks);
        let sum = async {
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        };
        assert_eq!(executor.run(sum).await, 4950);
    });
}

#[test]
fn the_pool_is_ours() {
    within_a_minute(async {
        let name = blocking::unblock(|| std::thread::current().name().map(str::to_string)).await;
        assert!(name.is_some_and(|name| name.starts_with("smol-pool")));
        let mut reader = blocking::Unblock::new(&b"bytes"[..]);
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "bytes");
    });
}
