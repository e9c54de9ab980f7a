//! Processes: the number of this one, and children that are no processes but threads of the
//! scenario, so that they end when the schedule says so.

pub use std::process::{
    ChildStderr, ChildStdin, ChildStdout, ExitCode, ExitStatus, Output, Stdio, abort, exit,
};

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::panic::Location;

use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::scheduler::{is_forked, point, wait_until};
use crate::thread;

/// The number of this process; another one in the child of a simulated fork.
pub fn id() -> u32 {
    if is_forked() { 43 } else { 42 }
}

/// The first number of a child.
const FIRST: u32 = 1_000_000;

#[derive(Default)]
struct Entry {
    /// As wait(2) gives it.
    status: Option<i32>,
    reaped: bool,
    pidfds: Vec<OwnedFd>,
}

thread_local! {
    static TABLE: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
    static NO_PIDFDS: Cell<bool> = const { Cell::new(false) };
}

/// From now on the system has no pidfds.
pub fn without_pidfds() {
    NO_PIDFDS.set(true);
}

/// How many children have ended and were not waited for, and how many have not ended.
pub fn zombies_and_orphans() -> (usize, usize) {
    TABLE.with_borrow(|table| {
        let zombies = table.iter().filter(|entry| entry.status.is_some() && !entry.reaped).count();
        (zombies, table.iter().filter(|entry| entry.status.is_none()).count())
    })
}

fn with<T>(pid: u32, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
    TABLE.with_borrow_mut(|table| table.get_mut(pid.checked_sub(FIRST)? as usize).map(f))
}

/// A child ends.
fn end(pid: u32, status: i32) {
    with(pid, |entry| {
        if entry.status.is_none() {
            entry.status = Some(status);
            for pidfd in &entry.pidfds {
                let _ = rustix::io::write(pidfd, &1u64.to_ne_bytes());
            }
        }
    });
}

/// What waiting for a child finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Running,
    Ended(i32),
    /// There is no such child, or its status was taken.
    Nothing,
}

/// Looks for the status of a child. `take`: it is nobody else's afterwards.
#[track_caller]
pub fn look(pid: u32, take: bool) -> Found {
    point("waitpid", Location::caller());
    let found = with(pid, |entry| match entry.status {
        _ if entry.reaped => Found::Nothing,
        None => Found::Running,
        Some(status) => {
            entry.reaped = take;
            Found::Ended(status)
        }
    });
    found.unwrap_or(Found::Nothing)
}

/// Waits until a child has ended, and looks for its status.
#[track_caller]
pub fn wait(pid: u32, take: bool) -> Found {
    let at = Location::caller();
    point("waitpid", at);
    wait_until("waitpid", at, None, false, || {
        with(pid, |entry| entry.status.is_some() || entry.reaped).unwrap_or(true)
    });
    look(pid, take)
}

/// Waits until any child has ended that nobody has waited for yet. `false`: there are no children.
#[track_caller]
pub fn wait_for_any() -> bool {
    let at = Location::caller();
    point("waitid", at);
    let exists = || TABLE.with_borrow(|table| table.iter().any(|entry| !entry.reaped));
    wait_until("waitid", at, None, false, || !exists() || zombies_and_orphans().0 > 0);
    exists()
}

/// A descriptor that is readable when the child has ended.
#[track_caller]
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    point("pidfd_open", Location::caller());
    if NO_PIDFDS.get() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let kept = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
    let made = with(pid, |entry| {
        if entry.status.is_some() {
            let _ = rustix::io::write(&kept, &1u64.to_ne_bytes());
        }
        entry.pidfds.push(kept);
    });
    made.map(|()| fd).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Kills a child. `false` if there is none.
#[track_caller]
pub fn kill(pid: u32) -> bool {
    point("kill", Location::caller());
    let exists = with(pid, |entry| !entry.reaped).unwrap_or(false);
    if exists {
        end(pid, 9);
    }
    exists
}

/// The same by its descriptor.
#[track_caller]
pub fn kill_by_pidfd(pidfd: impl std::os::fd::AsFd) -> bool {
    point("kill", Location::caller());
    // All children whose descriptor is of the same file are one.
    let inode = |fd: std::os::fd::BorrowedFd<'_>| {
        let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().find(|line| line.starts_with("eventfd-id")).map(str::to_string)
    };
    let wanted = inode(pidfd.as_fd());
    let pid = TABLE.with_borrow(|table| {
        let same = |fd: &OwnedFd| inode(std::os::fd::AsFd::as_fd(fd)) == wanted;
        table.iter().position(|entry| entry.pidfds.iter().any(same))
    });
    pid.is_some_and(|place| {
        end(FIRST + place as u32, 9);
        true
    })
}

/// What a child does: it is given the far ends of its pipes, and returns its exit code.
type Program = Box<dyn FnOnce(Option<OwnedFd>, Option<OwnedFd>) -> i32 + Send>;

/// A program to run. What it does is said by [`runs`](Command::runs).
#[derive(Default)]
pub struct Command {
    program: Option<Program>,
    pipes: [bool; 3],
}

impl Command {
    pub fn new(_program: impl AsRef<std::ffi::OsStr>) -> Command {
        Command::default()
    }

    /// What the child does. Without it, it ends at once.
    pub fn runs(
        &mut self,
        program: impl FnOnce(Option<OwnedFd>, Option<OwnedFd>) -> i32 + Send + 'static,
    ) -> &mut Command {
        self.program = Some(Box::new(program));
        self
    }

    /// Whatever is said is taken as `Stdio::piped()`.
    pub fn stdin(&mut self, _pipe: impl Into<Stdio>) -> &mut Command {
        self.pipes[0] = true;
        self
    }

    pub fn stdout(&mut self, _pipe: impl Into<Stdio>) -> &mut Command {
        self.pipes[1] = true;
        self
    }

    pub fn stderr(&mut self, _pipe: impl Into<Stdio>) -> &mut Command {
        self.pipes[2] = true;
        self
    }

    pub fn spawn(&mut self) -> io::Result<Child> {
        let pid = TABLE.with_borrow_mut(|table| {
            table.push(Entry::default());
            FIRST + table.len() as u32 - 1
        });
        let pipe = |place: usize| -> io::Result<Option<(OwnedFd, OwnedFd)>> {
            Ok(if self.pipes[place] { Some(pipe_with(PipeFlags::CLOEXEC)?) } else { None })
        };
        let (their_in, our_in) = pipe(0)?.unzip();
        let (our_out, their_out) = pipe(1)?.unzip();
        // Nobody writes to it.
        let (our_err, _) = pipe(2)?.unzip();
        let program = self.program.take().unwrap_or_else(|| Box::new(|_, _| 0));
        thread::spawn_for_the_scenario("child", move || {
            let code = program(their_in, their_out);
            end(pid, code << 8);
        });
        Ok(Child {
            stdin: our_in.map(ChildStdin::from),
            stdout: our_out.map(ChildStdout::from),
            stderr: our_err.map(ChildStderr::from),
            pid,
            status: None,
        })
    }
}

/// As std's.
#[derive(Debug)]
pub struct Child {
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    pid: u32,
    /// What was seen once is known for ever.
    status: Option<ExitStatus>,
}

impl Child {
    pub fn id(&self) -> u32 {
        self.pid
    }

    pub fn kill(&mut self) -> io::Result<()> {
        if self.status.is_none() {
            kill(self.pid);
        }
        Ok(())
    }

    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            match look(self.pid, true) {
                Found::Running => {}
                Found::Ended(status) => self.status = Some(ExitStatus::from_raw(status)),
                Found::Nothing => return Err(io::Error::from_raw_os_error(10)),
            }
        }
        Ok(self.status)
    }

    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.stdin = None;
        while self.status.is_none() {
            wait(self.pid, false);
            self.try_wait()?;
        }
        self.status.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
