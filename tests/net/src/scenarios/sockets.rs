//! Sockets: both directions, cancelled waiters, handles that are closed.

use std::future::Future;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use super::{Scenario, scenario};
use crate::smol::{Async, Timer, block_on, future, prelude::*, spawn};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_socket_is_read_and_written_at_the_same_time).steps(200_000),
        scenario!(a_waiter_gives_up_and_the_next_one_gets_the_byte),
        scenario!(two_wait_for_one_socket_and_both_are_woken),
        scenario!(more_wait_for_one_socket_than_it_has_places_for).steps(200_000).one_in(10),
        scenario!(whoever_gives_up_takes_the_waker_back),
        scenario!(a_handle_is_dropped_while_its_byte_arrives),
        scenario!(connections_are_accepted_one_after_the_other),
        scenario!(each_byte_of_a_stream_arrives_once).steps(200_000),
    ]
}

fn a_socket_is_read_and_written_at_the_same_time() {
    // More than the buffers of both sockets hold.
    const LEN: usize = 600_000;
    let (left, right) = socket_pair();
    let echo = spawn(async move {
        let (reader, mut writer) = (right.clone(), right);
        let mut reader = reader;
        let mut buf = vec![0; 16 << 10];
        let mut total = 0;
        while total < LEN {
            let len = reader.read(&mut buf).await.unwrap();
            writer.write_all(&buf[..len]).await.unwrap();
            total += len;
        }
    });
    let (mut reader, mut writer) = (left.clone(), left);
    let send = async move {
        let bytes = vec![7; LEN];
        writer.write_all(&bytes).await.unwrap();
    };
    let receive = async move {
        let mut bytes = vec![0; LEN];
        reader.read_exact(&mut bytes).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    };
    if perhaps() {
        let send = spawn(send);
        block_on(receive);
        block_on(send);
    } else {
        block_on(future::zip(send, receive));
    }
    block_on(echo);
}

fn a_waiter_gives_up_and_the_next_one_gets_the_byte() {
    let (left, right) = socket_pair();
    let right = Arc::new(right);
    let impatient = spawn({
        let right = right.clone();
        async move {
            let mut wait = Box::pin(right.readable());
            once(&mut wait).await;
            yields(1).await;
            drop(wait);
        }
    });
    let patient = spawn({
        let right = right.clone();
        async move {
            right.readable().await.unwrap();
            let mut byte = [0];
            (&*right).read_exact(&mut byte).await.unwrap();
            byte[0]
        }
    });
    let writer = thread("writer", move || block_on((&left).write_all(b"x")).unwrap());
    assert_eq!(block_on(patient), b'x');
    block_on(impatient);
    join([writer]);
}

fn two_wait_for_one_socket_and_both_are_woken() {
    let (left, right) = socket_pair();
    let right = Arc::new(right);
    let wait = |right: Arc<Async<std::os::unix::net::UnixStream>>| async move {
        right.readable().await.unwrap();
    };
    let on_workers = spawn(wait(right.clone()));
    let here = thread("here", {
        let right = right.clone();
        move || block_on(wait(right))
    });
    block_on((&left).write_all(b"x")).unwrap();
    block_on(on_workers);
    join([here]);
}

struct Notes(AtomicBool);

impl Wake for Notes {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Nobody knows who of them is still there: so some are woken to come back.
fn more_wait_for_one_socket_than_it_has_places_for() {
    let (left, right) = socket_pair();
    let right = Arc::new(right);
    let notes: Vec<_> = (0..70).map(|_| Arc::new(Notes(AtomicBool::new(false)))).collect();
    for note in &notes {
        let waker = Waker::from(note.clone());
        let mut reader = &*right;
        let read = Pin::new(&mut reader).poll_read(&mut Context::from_waker(&waker), &mut [0]);
        assert!(read.is_pending());
    }
    // This one waits for the same event, and is the last to be woken by it.
    let last = async { right.readable().await.unwrap() };
    let write = async { (&left).write_all(b"x").await.unwrap() };
    block_on(future::zip(last, write));
    let woken = notes.iter().filter(|note| note.0.load(Ordering::SeqCst)).count();
    assert_eq!(woken, notes.len());
}

fn whoever_gives_up_takes_the_waker_back() {
    let note = Arc::new(Notes(AtomicBool::new(false)));
    let waker = Waker::from(note.clone());
    let mut cx = Context::from_waker(&waker);
    let (_left, right) = socket_pair();
    assert!(pin!(right.readable()).poll(&mut cx).is_pending());
    assert!(pin!(right.writable()).poll(&mut cx).is_ready());
    assert!(pin!(Timer::after(millis(500))).poll(&mut cx).is_pending());
    drop(waker);
    assert_eq!(Arc::strong_count(&note), 1);
}

fn a_handle_is_dropped_while_its_byte_arrives() {
    for _ in 0..2 {
        let (left, right) = socket_pair();
        let reader = spawn(async move {
            let mut byte = [0];
            let _ = (&right).read(&mut byte).await;
        });
        let writer = thread("writer", move || {
            let _ = block_on((&left).write_all(b"x"));
        });
        if perhaps() {
            block_on(reader);
        } else {
            block_on(reader.cancel());
        }
        join([writer]);
    }
}

fn connections_are_accepted_one_after_the_other() {
    let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = listener.get_ref().local_addr().unwrap();
    let server = spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            stream.write_all(&byte).await.unwrap();
        }
    });
    for n in 0..2 {
        block_on(async {
            let mut client = Async::<std::net::TcpStream>::connect(address).await.unwrap();
            client.write_all(&[n]).await.unwrap();
            let mut byte = [9];
            client.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, [n]);
        });
    }
    block_on(server);
}

fn each_byte_of_a_stream_arrives_once() {
    let (mut left, mut right) = socket_pair();
    let writer = spawn(async move {
        for n in 0..10_u8 {
            left.write_all(&[n]).await.unwrap();
            if perhaps() {
                yields(1).await;
            }
        }
    });
    let reader = spawn(async move {
        let mut bytes = Vec::new();
        right.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    block_on(writer);
    assert_eq!(block_on(reader), (0..10).collect::<Vec<u8>>());
}
