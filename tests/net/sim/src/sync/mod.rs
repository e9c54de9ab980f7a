//! Locks, condition variables and cells that are filled once. Each is std's own, which is never
//! contended here, behind a point and a wait.

pub use std::sync::{Arc, LockResult, PoisonError, TryLockError, TryLockResult, Weak};

pub mod atomic;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync as real;

use crate::scheduler::{self, Woken, point, wait_until};
use crate::time::{Duration, deadline};

/// Waits until a lock can be had.
fn acquire<G>(
    what: &'static str,
    at: &'static Location<'static>,
    mut attempt: impl FnMut() -> TryLockResult<G>,
) -> LockResult<G> {
    point(what, at);
    let mut got = None;
    wait_until(what, at, None, false, || {
        got = match attempt() {
            Ok(guard) => Some(Ok(guard)),
            Err(TryLockError::Poisoned(err)) => Some(Err(err)),
            Err(TryLockError::WouldBlock) => None,
        };
        got.is_some()
    });
    got.unwrap_or_else(|| unreachable!("the wait has no deadline"))
}

/// Translates the guard of a result.
fn map<G, H>(result: LockResult<G>, f: impl FnOnce(G) -> H) -> LockResult<H> {
    match result {
        Ok(guard) => Ok(f(guard)),
        Err(err) => Err(PoisonError::new(f(err.into_inner()))),
    }
}

#[derive(Default)]
pub struct Mutex<T: ?Sized> {
    inner: real::Mutex<T>,
}

pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    inner: Option<real::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { inner: real::Mutex::new(value) }
    }

    pub fn into_inner(self) -> LockResult<T> {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    #[track_caller]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let inner = acquire("lock", Location::caller(), || self.inner.try_lock());
        map(inner, |inner| MutexGuard { mutex: self, inner: Some(inner) })
    }

    #[track_caller]
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        point("try_lock", Location::caller());
        match self.inner.try_lock() {
            Ok(inner) => Ok(MutexGuard { mutex: self, inner: Some(inner) }),
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
            Err(TryLockError::Poisoned(err)) => {
                let guard = MutexGuard { mutex: self, inner: Some(err.into_inner()) };
                Err(TryLockError::Poisoned(PoisonError::new(guard)))
            }
        }
    }

    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.inner.get_mut()
    }

    pub fn is_poisoned(&self) -> bool {
        self.inner.is_poisoned()
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Mutex<T> {
        Mutex::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.inner.as_deref().expect("it is locked")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_deref_mut().expect("it is locked")
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[derive(Default)]
pub struct RwLock<T: ?Sized> {
    inner: real::RwLock<T>,
}

pub use real::{RwLockReadGuard, RwLockWriteGuard};

impl<T> RwLock<T> {
    pub const fn new(value: T) -> RwLock<T> {
        RwLock { inner: real::RwLock::new(value) }
    }

    pub fn into_inner(self) -> LockResult<T> {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    #[track_caller]
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        acquire("read lock", Location::caller(), || self.inner.try_read())
    }

    #[track_caller]
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        acquire("write lock", Location::caller(), || self.inner.try_write())
    }

    #[track_caller]
    pub fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        point("try_read", Location::caller());
        self.inner.try_read()
    }

    #[track_caller]
    pub fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        point("try_write", Location::caller());
        self.inner.try_write()
    }

    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.inner.get_mut()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Who waits for a condition variable, by number, in the order in which they came; and the next
/// number.
#[derive(Debug, Default)]
struct Waiting {
    numbers: Vec<u64>,
    next: u64,
}

#[derive(Debug, Default)]
pub struct Condvar {
    waiting: real::Mutex<Waiting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub const fn new() -> Condvar {
        Condvar { waiting: real::Mutex::new(Waiting { numbers: Vec::new(), next: 0 }) }
    }

    /// Nothing is locked across a point here.
    fn waiting(&self) -> real::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Option<Duration>,
        at: &'static Location<'static>,
    ) -> (LockResult<MutexGuard<'a, T>>, Woken) {
        let mutex = guard.mutex;
        let number = {
            let mut waiting = self.waiting();
            waiting.next += 1;
            let number = waiting.next;
            waiting.numbers.push(number);
            number
        };
        guard.inner = None;
        drop(guard);
        point("wait", at);
        let woken = wait_until("condvar", at, timeout.and_then(deadline), true, || {
            !self.waiting().numbers.contains(&number)
        });
        self.waiting().numbers.retain(|other| *other != number);
        let inner = acquire("lock again", at, || mutex.inner.try_lock());
        (map(inner, |inner| MutexGuard { mutex, inner: Some(inner) }), woken)
    }

    #[track_caller]
    pub fn wait<'a, T: ?Sized>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.sleep(guard, None, Location::caller()).0
    }

    #[track_caller]
    pub fn wait_while<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut *guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    #[track_caller]
    pub fn wait_timeout<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let (guard, woken) = self.sleep(guard, Some(timeout), Location::caller());
        map(guard, |guard| (guard, WaitTimeoutResult(woken == Woken::Timeout)))
    }

    #[track_caller]
    pub fn wait_timeout_while<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let until = deadline(timeout);
        loop {
            if !condition(&mut *guard) {
                return Ok((guard, WaitTimeoutResult(false)));
            }
            let left = until.map(|at| at.saturating_sub(scheduler::now()));
            if left == Some(0) {
                return Ok((guard, WaitTimeoutResult(true)));
            }
            let left = left.map(Duration::from_nanos);
            guard = match self.sleep(guard, left, Location::caller()).0 {
                Ok(guard) => guard,
                Err(err) => {
                    return Err(PoisonError::new((err.into_inner(), WaitTimeoutResult(false))));
                }
            };
        }
    }

    #[track_caller]
    pub fn notify_one(&self) {
        point("notify_one", Location::caller());
        let mut waiting = self.waiting();
        if !waiting.numbers.is_empty() {
            // The system promises no order.
            let place = scheduler::random(waiting.numbers.len() as u64) as usize;
            waiting.numbers.remove(place);
        }
    }

    #[track_caller]
    pub fn notify_all(&self) {
        point("notify_all", Location::caller());
        self.waiting().numbers.clear();
    }
}

/// As std's; whoever comes while another one fills it waits.
pub struct OnceLock<T> {
    value: real::OnceLock<T>,
    filling: Mutex<()>,
}

impl<T> OnceLock<T> {
    pub const fn new() -> OnceLock<T> {
        OnceLock { value: real::OnceLock::new(), filling: Mutex::new(()) }
    }

    #[track_caller]
    pub fn get(&self) -> Option<&T> {
        point("once", Location::caller());
        self.value.get()
    }

    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.value.get_mut()
    }

    #[track_caller]
    pub fn set(&self, value: T) -> Result<(), T> {
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        self.value.set(value)
    }

    #[track_caller]
    pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        let value: Result<&T, ()> = self.get_or_try(|| Ok(init()));
        value.unwrap_or_else(|()| unreachable!("it cannot fail"))
    }

    /// What std calls `get_or_try_init`, which is not stable there.
    #[track_caller]
    pub fn get_or_try<E>(&self, init: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        point("once", Location::caller());
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let value = init()?;
        Ok(self.value.get_or_init(|| value))
    }

    pub fn into_inner(self) -> Option<T> {
        self.value.into_inner()
    }

    pub fn take(&mut self) -> Option<T> {
        self.value.take()
    }
}

/// As std's, over a function pointer.
pub struct LazyLock<T> {
    value: OnceLock<T>,
    init: fn() -> T,
}

impl<T> LazyLock<T> {
    pub const fn new(init: fn() -> T) -> LazyLock<T> {
        LazyLock { value: OnceLock::new(), init }
    }
}

impl<T> Deref for LazyLock<T> {
    type Target = T;

    #[track_caller]
    fn deref(&self) -> &T {
        self.value.get_or_init(self.init)
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> OnceLock<T> {
        OnceLock::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}
