//! The blocking pool and what goes through it: jobs, files, other people's readers.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread as std_thread;
use std::time::Duration;

use super::{Scenario, scenario};
use crate::smol::{Async, Unblock, block_on, future, prelude::*, spawn, unblock};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(jobs_come_in_a_burst),
        scenario!(jobs_come_in_a_burst_at_the_limit_of_the_pool),
        scenario!(jobs_wait_for_jobs_at_the_limit_of_the_pool),
        scenario!(a_job_waits_for_one_that_is_queued_behind_it),
        scenario!(a_job_blocks_until_another_one_runs),
        scenario!(a_job_arrives_while_the_last_idle_thread_ends).steady_clock(),
        scenario!(jobs_are_cancelled_while_they_begin),
        scenario!(jobs_are_submitted_by_tasks_and_by_threads),
        scenario!(no_thread_can_be_started_for_jobs).starts(1, 4),
        scenario!(a_file_is_written_and_read_back),
        scenario!(a_file_is_written_by_several_clones),
        scenario!(an_operation_on_a_file_is_given_up_and_nothing_is_lost),
        scenario!(a_lane_of_a_file_is_full).one_in(10),
        scenario!(those_who_give_up_while_a_lane_is_full_are_no_loss).one_in(10),
        scenario!(a_file_is_read_by_one_and_written_by_another),
        scenario!(a_reader_goes_through_the_pool),
    ]
}

fn jobs_come_in_a_burst() {
    let tally = Tally::default();
    let jobs: Vec<_> = (0..6)
        .map(|n| {
            let counted = tally.begin();
            unblock(move || {
                on_a_worker();
                drop(counted);
                n
            })
        })
        .collect();
    for (n, job) in jobs.into_iter().enumerate() {
        assert_eq!(block_on(job), n);
    }
    tally.all_have_ended(6);
}

fn jobs_come_in_a_burst_at_the_limit_of_the_pool() {
    std::env::set("BLOCKING_MAX_THREADS", "2");
    jobs_come_in_a_burst();
}

fn jobs_wait_for_jobs_at_the_limit_of_the_pool() {
    std::env::set("BLOCKING_MAX_THREADS", if perhaps() { "1" } else { "2" });
    let jobs: Vec<_> = (0..3).map(|n| unblock(move || block_on(unblock(move || n)))).collect();
    for (n, job) in jobs.into_iter().enumerate() {
        assert_eq!(block_on(job), n);
    }
}

fn a_job_waits_for_one_that_is_queued_behind_it() {
    std::env::set("BLOCKING_MAX_THREADS", "1");
    let (sender, receiver) = oneshot();
    let first = unblock(|| block_on(receiver));
    let second = unblock(|| sender.send(1));
    assert_eq!(block_on(first), Some(1));
    block_on(second);
}

/// None may wait behind another one that blocks.
fn a_job_blocks_until_another_one_runs() {
    let flags: Vec<Flag> = (0..5).map(|_| Flag::default()).collect();
    let jobs: Vec<_> = (0..5)
        .map(|n| {
            let (next, mine) = (flags.get(n + 1).cloned(), flags[n].clone());
            unblock(move || {
                if let Some(next) = next {
                    next.wait();
                }
                mine.set();
            })
        })
        .collect();
    for job in jobs {
        block_on(job);
    }
}

fn a_job_arrives_while_the_last_idle_thread_ends() {
    const IDLE: Duration = Duration::from_secs(2);
    for _ in 0..2 {
        assert_eq!(block_on(unblock(|| 1)), 1);
        needs(IDLE);
        std_thread::sleep(IDLE);
        assert_eq!(block_on(unblock(|| 2)), 2);
    }
}

fn jobs_are_cancelled_while_they_begin() {
    let tally = Tally::default();
    let jobs: Vec<_> = (0..4)
        .map(|n| {
            let counted = tally.begin();
            unblock(move || {
                drop(counted);
                n
            })
        })
        .collect();
    let canceller = thread("canceller", move || {
        for job in jobs {
            block_on(job.cancel());
        }
    });
    join([canceller]);
    block_on(unblock(|| ()));
    tally.all_have_ended(4);
}

fn jobs_are_submitted_by_tasks_and_by_threads() {
    let task = spawn(async {
        for n in 0..3 {
            assert_eq!(unblock(move || n).await, n);
        }
    });
    let other = thread("other", || {
        for n in 0..3 {
            assert_eq!(block_on(unblock(move || n)), n);
        }
    });
    block_on(task);
    join([other]);
}

fn no_thread_can_be_started_for_jobs() {
    let jobs: Vec<_> = (0..4).map(|n| unblock(move || n)).collect();
    for (n, job) in jobs.into_iter().enumerate() {
        assert_eq!(block_on(job), n);
    }
}

/// A file in memory, which the kernel cannot poll.
fn file() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    File::from(rustix::fs::memfd_create("net", flags).expect("there are descriptors"))
}

/// What is in a file, read by somebody who knows nothing of the runtime.
fn content(file: &File) -> Vec<u8> {
    let mut file = File::from(file.as_fd().try_clone_to_owned().unwrap());
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn a_file_is_written_and_read_back() {
    let plain = file();
    let copy = plain.try_clone().unwrap();
    let task = spawn(async move {
        let mut file = Async::<File>::from(copy);
        for n in 0..3_u8 {
            file.write_all(&[n; 5]).await.unwrap();
        }
        file.flush().await.unwrap();
        file.seek(SeekFrom::Start(0)).await.unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    let expected: Vec<u8> = (0..3).flat_map(|n| [n; 5]).collect();
    assert_eq!(block_on(task), expected);
    assert_eq!(content(&plain), expected);
}

fn a_file_is_written_by_several_clones() {
    let plain = file();
    let shared = Async::<File>::from(plain.try_clone().unwrap());
    let writers: Vec<_> = (0..3_u8)
        .map(|n| {
            let mut file = shared.clone();
            spawn(async move {
                for _ in 0..3 {
                    file.write_all(&[n]).await.unwrap();
                }
                file.flush().await.unwrap();
            })
        })
        .collect();
    for writer in writers {
        block_on(writer);
    }
    let mut bytes = content(&plain);
    bytes.sort_unstable();
    assert_eq!(bytes, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
}

fn an_operation_on_a_file_is_given_up_and_nothing_is_lost() {
    let plain = file();
    (&plain).write_all(b"0123456789").unwrap();
    (&plain).seek(SeekFrom::Start(0)).unwrap();
    let task = spawn(async move {
        let mut file = Async::<File>::from(plain);
        let mut all = Vec::new();
        while all.len() < 10 {
            let mut buf = [0; 3];
            let mut read = Box::pin(file.read(&mut buf));
            let first = once(&mut read).await;
            let len = match first {
                Some(len) => len.unwrap(),
                // The answer is for the next one who asks.
                None if perhaps() => continue,
                None => read.await.unwrap(),
            };
            all.extend_from_slice(&buf[..len]);
        }
        all
    });
    assert_eq!(block_on(task), b"0123456789");
}

/// Who comes when so much is queued waits for its end.
fn a_lane_of_a_file_is_full() {
    const LEN: usize = 700 << 10;
    let plain = file();
    let shared = Async::<File>::from(plain.try_clone().unwrap());
    let writers: Vec<_> = (0..4_u8)
        .map(|n| {
            let mut file = shared.clone();
            spawn(async move {
                file.write_all(&vec![n; LEN]).await.unwrap();
                file.flush().await.unwrap();
            })
        })
        .collect();
    for writer in writers {
        block_on(writer);
    }
    assert_eq!(plain.metadata().unwrap().len(), 4 * LEN as u64);
}

/// Each operation that ends wakes one who waits for room; of these, most are gone. The end of the
/// queue wakes whoever is left.
fn those_who_give_up_while_a_lane_is_full_are_no_loss() {
    const LEN: usize = 1 << 20;
    let plain = file();
    let shared = Async::<File>::from(plain.try_clone().unwrap());
    let writer = |gives_up: bool| {
        let mut file = shared.clone();
        spawn(async move {
            let bytes = vec![1; LEN];
            let mut write = Box::pin(file.write_all(&bytes));
            if gives_up {
                once(&mut write).await;
                return;
            }
            write.await.unwrap();
        })
    };
    let (first, second) = (writer(false), writer(false));
    for gone in [(); 4].map(|()| writer(true)) {
        block_on(gone);
    }
    block_on(future::zip(first, second));
    let len = plain.metadata().unwrap().len();
    assert!((2..=6).contains(&(len >> 20)), "{len} bytes");
}

fn a_file_is_read_by_one_and_written_by_another() {
    let plain = file();
    (&plain).write_all(b"0123456789").unwrap();
    (&plain).seek(SeekFrom::Start(0)).unwrap();
    let mut file = Async::<File>::from(plain.try_clone().unwrap());
    let mut other = file.clone();
    let reader = spawn(async move {
        file.read_exact(&mut [0; 2]).await.unwrap();
    });
    let writer = spawn(async move {
        other.write_all(b"abc").await.unwrap();
        other.flush().await.unwrap();
    });
    block_on(reader);
    block_on(writer);
    assert_eq!(content(&plain).iter().filter(|byte| byte.is_ascii_alphabetic()).count(), 3);
}

fn a_reader_goes_through_the_pool() {
    let bytes: Arc<[u8]> = (0..20).collect();
    let mut reader = Unblock::new(Cursor::new(bytes.clone()));
    let mut read = Vec::new();
    block_on(future::zip(reader.read_to_end(&mut read), spawn(yields(3)))).0.unwrap();
    assert_eq!(read, *bytes);
}
