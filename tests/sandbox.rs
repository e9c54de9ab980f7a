//! A sandbox that forbids single system calls (gVisor, seccomp, an old kernel): a process without a
//! timer descriptor, without an event descriptor or without the newer calls serves connections,
//! timers, files and children as any other.

#![cfg(target_os = "linux")]

mod common;

use common::{Flag, cpu_time, foreign_block_on, fresh_processes, idle_cost, sleep};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads};
use smol::{Async, Executor, Timer, block_on, future, prelude::*, spawn, spawn_local, unblock};
use std::{
    env,
    fs::File,
    io::{self, SeekFrom},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

const MS: Duration = Duration::from_millis(1);

/// What a forbidden call answers: a kernel that does not know it, and two kinds of sandboxes.
const ANSWERS: [&[(&str, &str)]; 3] =
    [&[("ANSWER", "ENOSYS")], &[("ANSWER", "EPERM")], &[("ANSWER", "EACCES")]];

/// From here on, none of `calls` works in this process.
fn forbid(calls: &[i64]) {
    let answer = match env::var("ANSWER").as_deref() {
        Ok("EPERM") => libc::EPERM,
        Ok("EACCES") => libc::EACCES,
        _ => libc::ENOSYS,
    };
    let filter = SeccompFilter::new(
        calls.iter().map(|&call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(answer as u32),
        TargetArch::try_from(env::consts::ARCH).unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter_all_threads(&program).unwrap();
}

fn no_timer_descriptor() -> bool {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).is_err()
}

fn no_event_descriptor() -> bool {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).is_err()
}

/// Everything a server does, under every kind of `block_on`.
fn serve() {
    sockets();
    timers();
    wakes();
    files();
    children();
    nothing_spins();
}

fn sockets() {
    async fn echo() -> io::Result<()> {
        let listener = Async::<TcpListener>::bind(("127.0.0.1", 0))?;
        let addr = listener.get_ref().local_addr()?;
        let server = spawn(async move {
            for _ in 0..3 {
                let (stream, _) = listener.accept().await?;
                spawn(async move { smol::io::copy(&stream, &mut &stream).await }).detach();
            }
            io::Result::Ok(())
        });
        for _ in 0..3 {
            let mut client = Async::<TcpStream>::connect(addr).await?;
            for _ in 0..5 {
                client.write_all(b"ping").await?;
                let mut buffer = [0; 4];
                client.read_exact(&mut buffer).await?;
                assert_eq!(&buffer, b"ping");
            }
        }
        server.await?;
        let [one, two] = [(); 2].map(|()| Async::<UdpSocket>::bind(("127.0.0.1", 0)).unwrap());
        let reading = async { two.recv_from(&mut [0; 8]).await };
        let writing = async {
            sleep(MS).await;
            one.send_to(b"x", two.get_ref().local_addr()?).await
        };
        future::try_zip(reading, writing).await?;
        Ok(())
    }
    block_on(echo()).unwrap();
    foreign_block_on(echo()).unwrap();
    block_on(spawn(echo())).unwrap();
    let own = Executor::new();
    let task = own.spawn(echo());
    block_on(own.run(task)).unwrap();
}

fn timers() {
    let due = |duration| async move {
        let start = Instant::now();
        Timer::after(duration).await;
        assert!(start.elapsed() >= duration, "{:?} of {duration:?}", start.elapsed());
    };
    for duration in [Duration::ZERO, MS / 10, 3 * MS, 20 * MS] {
        block_on(due(duration));
        foreign_block_on(due(duration));
        block_on(spawn(due(duration)));
        block_on(async { spawn_local(due(duration)).await });
    }
    // An earlier one than that for which somebody sleeps already, set on another thread.
    let asleep = Flag::new();
    thread::scope(|scope| {
        let (start, waiting) = (Instant::now(), asleep.clone());
        let late = scope.spawn(move || {
            block_on(async {
                let mut far = Timer::after(Duration::from_secs(3600));
                assert!(future::poll_once(&mut far).await.is_none());
                waiting.set();
                future::or(far, Timer::after(300 * MS)).await;
            })
        });
        asleep.wait_blocking();
        foreign_block_on(due(5 * MS));
        block_on(due(5 * MS));
        late.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
    });
}

/// Wakes from elsewhere reach a thread that sleeps in the kernel.
fn wakes() {
    let (one, _two) = Async::<UnixStream>::pair().unwrap();
    for _ in 0..20 {
        let flag = Flag::new();
        thread::scope(|scope| {
            scope.spawn(|| block_on(future::or(flag.wait(), async { drop(one.readable().await) })));
            thread::sleep(MS); // it sleeps in the kernel by now, most of the time
            flag.set();
        });
        assert_eq!(block_on(unblock(|| 7)), 7);
        assert_eq!(foreign_block_on(spawn(async { unblock(|| 8).await })), 8);
    }
}

fn files() {
    block_on(async {
        let mut file = Async::from(tempfile::tempfile().unwrap());
        file.write_all(&[7; 100_000]).await.unwrap();
        for _ in 0..2 {
            file.seek(SeekFrom::Start(0)).await.unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes.len(), 100_000);
            assert!(bytes.iter().all(|&byte| byte == 7));
        }
        assert!(Async::<File>::open("/no/such/file").await.is_err());
    });
}

fn children() {
    block_on(async {
        let child = Async::<Child>::spawn(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(child.status().await.unwrap().code(), Some(7));
        let child = Async::<Child>::spawn(Command::new("sleep").arg("600")).unwrap();
        let status = child.status();
        child.kill().unwrap();
        assert!(!status.await.unwrap().success());
    });
}

/// What takes the place of a missing call does not poll in a circle for it.
fn nothing_spins() {
    let (one, _two) = Async::<UnixStream>::pair().unwrap();
    let _task = spawn({
        let one = one.clone();
        async move { future::or(sleep(Duration::from_secs(3600)), drop_it(one)).await }
    });
    async fn drop_it(socket: Async<UnixStream>) {
        drop(socket.readable().await);
    }
    let (used, wakes) = idle_cost(500 * MS);
    assert!(used < 50 * MS && wakes < 20, "idle: {used:?} of processor time, {wakes} wake-ups");
    let before = cpu_time();
    block_on(sleep(300 * MS));
    let used = cpu_time() - before;
    assert!(used < 100 * MS, "one timer of 300 ms costs {used:?}");
}

#[test]
fn nothing_is_missing_in_this_test_without_a_sandbox() {
    fresh_processes(30, &[&[]], || {
        assert!(!no_timer_descriptor() && !no_event_descriptor());
        serve();
    });
}

#[test]
fn a_process_without_timer_descriptors_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_timerfd_create]);
        assert!(no_timer_descriptor() && !no_event_descriptor());
        serve();
    });
}

#[test]
fn a_process_without_event_descriptors_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_eventfd2]);
        assert!(no_event_descriptor() && !no_timer_descriptor());
        serve();
    });
}

#[test]
fn a_process_without_timer_and_event_descriptors_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_timerfd_create, libc::SYS_eventfd2]);
        assert!(no_event_descriptor() && no_timer_descriptor());
        serve();
    });
}

/// Linux 5.10 and older, and sandboxes whose lists are older than the call.
#[test]
fn a_process_without_the_precise_wait_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_epoll_pwait2]);
        serve();
    });
}

#[test]
fn a_process_without_descriptors_of_processes_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_pidfd_open]);
        serve();
    });
}

#[test]
fn a_process_without_reads_that_do_not_wait_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_preadv2]);
        serve();
    });
}

/// All that the runtime can do without, at once.
#[test]
fn a_process_without_any_of_the_newer_calls_serves() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[
            libc::SYS_timerfd_create,
            libc::SYS_eventfd2,
            libc::SYS_epoll_pwait2,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
            libc::SYS_preadv2,
            libc::SYS_io_uring_setup,
            libc::SYS_copy_file_range,
            libc::SYS_close_range,
        ]);
        serve();
    });
}

/// Without the old calls there is no runtime to be had; what remains works, and the rest says so.
#[cfg(not(polling_test_poll_backend))] // poll(2) needs none
#[test]
fn a_process_that_cannot_make_a_poller_gets_an_error_for_sockets_and_the_rest_works() {
    fresh_processes(30, &ANSWERS, || {
        forbid(&[libc::SYS_epoll_create1]);
        let error = Async::<TcpListener>::bind(("127.0.0.1", 0)).unwrap_err();
        assert!(!error.to_string().contains("regular"), "the wrong advice: {error}");
        timers();
        files();
        assert_eq!(block_on(spawn(async { unblock(|| 1).await })), 1);
    });
}

/// A sandbox is often entered late, when the program has opened what it needs.
#[test]
fn a_process_that_enters_its_sandbox_late_goes_on() {
    fresh_processes(30, &ANSWERS, || {
        let (mut one, mut two) = Async::<UnixStream>::pair().unwrap();
        block_on(async {
            assert!(future::poll_once(two.read(&mut [0])).await.is_none());
            sleep(MS).await;
        });
        forbid(&[
            libc::SYS_timerfd_create,
            libc::SYS_eventfd2,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_pwait2,
            libc::SYS_pidfd_open,
            libc::SYS_preadv2,
        ]);
        block_on(async {
            future::try_zip(one.write_all(b"x"), two.read_exact(&mut [0])).await.unwrap();
        });
        serve();
    });
}
