//! What the I/O tests share, on top of `common`: pipes, full buffers, and a probe for operations that must wait for the right thing.

#![allow(dead_code)] // each test program uses its own part of this file

use smol::{Async, Timer, future, prelude::*};
use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    pin::pin,
    time::Duration,
};

/// A pipe whose ends are registered with the reactor: the reader and the writer.
#[cfg(unix)]
pub(crate) fn pipe() -> (Async<File>, Async<File>) {
    let (reader, writer) = std_pipe();
    (Async::new(reader).unwrap(), Async::new(writer).unwrap())
}

/// A pipe as std sees it, blocking: the reader and the writer.
#[cfg(unix)]
pub(crate) fn std_pipe() -> (File, File) {
    // Made through a pair of descriptors that children do not inherit.
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (File::from(reader), File::from(writer))
}

/// Writes into a non-blocking handle until it takes no more; says how many bytes went in.
pub(crate) fn fill(mut writer: impl Write) -> usize {
    let mut total = 0;
    // Single bytes at the end: a pipe may refuse a large chunk and still have room.
    for chunk in [&[7; 4096][..], &[7; 1]] {
        loop {
            match writer.write(chunk) {
                Ok(n) => total += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("cannot fill: {e}"),
            }
        }
    }
    total
}

/// Checks that `op` waits, and for the right thing only: it must not finish before `enable`, `distract` must not make it spin, and
/// after `enable` it must finish. `distract` may make the handle ready in the other direction. Answers with the result of `op`.
pub(crate) async fn waits_for<T>(
    name: &str,
    op: impl Future<Output = io::Result<T>>,
    distract: impl FnOnce(),
    enable: impl FnOnce(),
) -> T {
    let mut polls = 0;
    let mut op = pin!(op);
    let mut op = pin!(future::poll_fn(|cx| {
        polls += 1;
        op.as_mut().poll(cx)
    }));
    let early = future::poll_once(op.as_mut()).await.is_some();
    assert!(!early, "{name}: should have to wait");
    distract();
    // A few turns of the reactor, in which nothing must happen.
    let rounds = async {
        for _ in 0..3 {
            Timer::after(Duration::from_millis(2)).await;
        }
        false
    };
    let early = async {
        let _ = op.as_mut().await;
        true
    };
    assert!(!early.or(rounds).await, "{name}: finished before it could");
    enable();
    let result = op.await.unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(polls < 50, "{name}: was polled {polls} times for one event");
    result
}
