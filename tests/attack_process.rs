//! Attacks on processes: many waiters, cancelled waiters, many children, with and without pidfds.

#![cfg(target_os = "linux")]
#![allow(clippy::redundant_closure)] // the name of a test is taken from its closure

mod common;

use common::{counting_waker, eventually, fresh_process, live_bytes, open_fds, within};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};
use smol::{Async, Timer, future};
use std::collections::BTreeMap;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::Context;
use std::thread;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

fn forbid_pidfds() {
    let rules = BTreeMap::from([(libc::SYS_pidfd_open, Vec::new())]);
    let action = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap();
    apply_filter_all_threads(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

fn cat() -> Async<Child> {
    Async::<Child>::spawn(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null())).unwrap()
}

fn zombies() -> usize {
    let own = format!(" {} ", std::process::id());
    let dirs = std::fs::read_dir("/proc").unwrap();
    let stats = dirs.filter_map(|dir| std::fs::read_to_string(dir.ok()?.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&format!(") Z{own}"))).count()
}

fn many_waiters() {
    let child = Arc::new(cat());
    let stdin = child.take_stdin();
    let waits: Vec<_> = (0..500)
        .map(|n| {
            let child = child.clone();
            let wait = async move { child.status().await.unwrap() };
            if n % 2 == 0 { smol::spawn(wait) } else { smol::spawn_local(wait) }
        })
        .collect();
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let child = child.clone();
            thread::spawn(move || match n % 2 {
                0 => smol::block_on(child.status()).unwrap(),
                _ => common::foreign_block_on(child.status()).unwrap(),
            })
        })
        .collect();
    smol::block_on(async {
        Timer::after(Duration::from_millis(50)).await;
        let mut waits = waits;
        drop(waits.split_off(250));
        drop(stdin);
        for wait in waits {
            assert!(wait.await.success());
        }
    });
    threads.into_iter().for_each(|thread| assert!(thread.join().unwrap().success()));
    assert!(smol::block_on(child.status()).unwrap().success());
    assert!(child.kill().is_err());
}

fn cancelled_waiters_leave_nothing() {
    let child = cat();
    let stdin = child.take_stdin();
    let round = || {
        let (waker, wakes) = counting_waker();
        for _ in 0..1000 {
            let mut status = pin!(child.status());
            assert!(status.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert!(status.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        drop(waker);
        eventually(|| Arc::strong_count(&wakes) == 1);
    };
    round();
    let before = live_bytes();
    (0..5).for_each(|_| round());
    let grown = live_bytes() - before;
    assert!(grown < 50_000, "{grown} bytes more after 5,000 cancelled waiters");
    drop(stdin);
    assert!(smol::block_on(child.status()).unwrap().success());
}

fn two_hundred() {
    let fds = open_fds();
    smol::block_on(async {
        let children: Vec<_> = (0..200).map(|_| cat()).collect();
        for (n, child) in children.iter().enumerate() {
            match n % 4 {
                0 => drop(child.take_stdin()),
                1 => child.kill().unwrap(),
                2 => child.signal(15).unwrap(),
                _ => child.kill_on_drop(true),
            }
        }
        for (n, child) in children.iter().enumerate() {
            if n % 4 != 3 {
                let status = child.status().await.unwrap();
                assert_eq!(status.success(), n % 4 == 0, "{n} {status}");
            }
        }
    });
    eventually(|| zombies() == 0);
    eventually(|| open_fds() <= fds + 8);
}

#[test]
fn many_waiters_on_one_child_all_hear_of_its_end() {
    within(60, many_waiters);
}

#[test]
fn many_waiters_on_one_child_all_hear_of_its_end_without_pidfds() {
    fresh_process(60, &[], || {
        forbid_pidfds();
        many_waiters();
    });
}

#[test]
fn waiters_that_are_cancelled_leave_no_wakers() {
    fresh_process(60, &[], || cancelled_waiters_leave_nothing());
}

#[test]
fn waiters_that_are_cancelled_leave_no_wakers_without_pidfds() {
    fresh_process(60, &[], || {
        forbid_pidfds();
        cancelled_waiters_leave_nothing();
    });
}

#[test]
fn two_hundred_children_at_once_end_each_in_its_way() {
    fresh_process(60, &[], || two_hundred());
}

#[test]
fn two_hundred_children_at_once_end_each_in_its_way_without_pidfds() {
    fresh_process(60, &[], || {
        forbid_pidfds();
        two_hundred();
    });
}

#[test]
fn where_sigchld_is_ignored_every_waiter_gets_an_error_and_none_hangs() {
    fresh_process(60, &[], || {
        let ignore = |pids| {
            if pids {
                forbid_pidfds();
            }
            let child = Arc::new(cat());
            let stdin = child.take_stdin();
            let waits: Vec<_> = (0..20)
                .map(|_| {
                    let child = child.clone();
                    smol::spawn(async move { child.status().await })
                })
                .collect();
            drop(stdin);
            smol::block_on(async {
                for wait in waits {
                    assert!(wait.await.is_err());
                }
                assert!(child.try_status().is_err() && child.kill().is_err());
            });
        };
        if std::env::var_os("IGNORES").is_some() {
            ignore(false);
            return ignore(true);
        }
        let exe = std::env::current_exe().unwrap();
        let name = "where_sigchld_is_ignored_every_waiter_gets_an_error_and_none_hangs";
        // (dash does not hand that down.)
        let mut perl = Command::new("perl");
        perl.args(["-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV"]).arg(exe);
        perl.args([name, "--exact", "--nocapture"]).env("IGNORES", "1");
        assert!(smol::block_on(Async::<Child>::run(&mut perl)).unwrap().success());
    });
}

#[test]
fn a_waiter_that_moves_between_tasks_is_woken_where_it_was_polled_last() {
    fresh_process(60, &[], || {
        forbid_pidfds();
        let child = cat();
        let stdin = child.take_stdin();
        let mut status = Box::pin(async move { child.status().await });
        let (waker, _wakes) = counting_waker();
        for _ in 0..10 {
            assert!(status.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let task = smol::spawn(status);
        drop(stdin);
        assert!(smol::block_on(task).unwrap().success());
        smol::block_on(future::yield_now());
    });
}
