//! Threads and thread-locals.

pub use std::thread::{Result, panicking};

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::scheduler::{self, Slot, point, wait_until};
use crate::time::{Duration, deadline};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThreadId(usize);

/// A handle of a thread.
#[derive(Clone)]
pub struct Thread {
    id: usize,
    name: Option<Arc<str>>,
    token: Arc<AtomicUsize>,
}

impl Thread {
    pub fn id(&self) -> ThreadId {
        ThreadId(self.id)
    }

    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    #[track_caller]
    pub fn unpark(&self) {
        point("unpark", Location::caller());
        self.token.store(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("id", &self.id).field("name", &self.name).finish()
    }
}

crate::thread_local! {
    static TOKEN: Arc<AtomicUsize> = Arc::new(AtomicUsize::new(0));
}

pub fn current() -> Thread {
    let thread = scheduler::current();
    let id = thread.as_ref().map_or(usize::MAX, |thread| thread.id);
    let name = thread.and_then(|thread| thread.name.as_deref().map(Arc::from));
    let token = TOKEN.try_with(Arc::clone).unwrap_or_default();
    Thread { id, name, token }
}

#[track_caller]
pub fn park() {
    let at = Location::caller();
    point("park", at);
    let token = current().token;
    wait_until("park", at, None, true, || token.load(Ordering::SeqCst) == 1);
    token.store(0, Ordering::SeqCst);
}

#[track_caller]
pub fn park_timeout(timeout: Duration) {
    let at = Location::caller();
    point("park", at);
    let token = current().token;
    wait_until("park", at, deadline(timeout), true, || token.load(Ordering::SeqCst) == 1);
    token.store(0, Ordering::SeqCst);
}

#[track_caller]
pub fn sleep(time: Duration) {
    let at = Location::caller();
    point("sleep", at);
    wait_until("sleep", at, deadline(time), false, || false);
}

#[track_caller]
pub fn yield_now() {
    scheduler::yield_now();
}

pub fn available_parallelism() -> io::Result<NonZeroUsize> {
    let processors = scheduler::config(|config| config.processors);
    NonZeroUsize::new(processors).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What a thread leaves behind.
type Packet<T> = Arc<Mutex<Option<Result<T>>>>;

pub struct JoinHandle<T> {
    thread: Rc<scheduler::Thread>,
    packet: Packet<T>,
}

impl<T> JoinHandle<T> {
    #[track_caller]
    pub fn join(self) -> Result<T> {
        let at = Location::caller();
        point("join", at);
        wait_until("join", at, None, false, || self.thread.ended.get());
        let result = self.packet.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.expect("a thread leaves a result behind")
    }

    pub fn is_finished(&self) -> bool {
        self.thread.ended.get()
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub struct Builder {
    name: Option<String>,
}

impl Builder {
    pub fn new() -> Builder {
        Builder::default()
    }

    pub fn name(mut self, name: String) -> Builder {
        self.name = Some(name);
        self
    }

    pub fn stack_size(self, _size: usize) -> Builder {
        self
    }

    #[track_caller]
    pub fn spawn<T: Send + 'static>(
        self,
        main: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        point("start a thread", Location::caller());
        if scheduler::start_fails() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(start(self.name, false, main))
    }
}

fn start<T: Send + 'static>(
    name: Option<String>,
    of_the_scenario: bool,
    main: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let packet = Packet::default();
    let result = packet.clone();
    let thread = scheduler::spawn(name, of_the_scenario, move || {
        let output = catch_unwind(AssertUnwindSafe(main));
        *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
    });
    JoinHandle { thread, packet }
}

#[track_caller]
pub fn spawn<T: Send + 'static>(main: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().spawn(main).expect("failed to spawn thread")
}

/// Starts a thread that belongs to the scenario; this never fails.
#[track_caller]
pub fn spawn_for_the_scenario<T: Send + 'static>(
    name: &str,
    main: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    point("start a thread", Location::caller());
    start(Some(name.into()), true, main)
}

/// The value of a thread-local is being destroyed, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError;

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("already destroyed")
    }
}

impl std::error::Error for AccessError {}

/// A thread-local. Each simulated thread has its own value, which is destroyed when the thread
/// ends.
pub struct LocalKey<T: 'static> {
    init: fn() -> T,
    /// The number of the key, plus one.
    number: AtomicUsize,
}

static KEYS: AtomicUsize = AtomicUsize::new(0);

impl<T: 'static> LocalKey<T> {
    pub const fn new(init: fn() -> T) -> LocalKey<T> {
        LocalKey { init, number: AtomicUsize::new(0) }
    }

    fn number(&'static self) -> usize {
        if self.number.load(Ordering::Relaxed) == 0 {
            self.number.store(KEYS.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        self.number.load(Ordering::Relaxed) - 1
    }

    /// Whether it has a value, or the value.
    fn value(&'static self) -> std::result::Result<Rc<T>, AccessError> {
        let thread = scheduler::current().expect("thread-locals belong to simulated threads");
        let number = self.number();
        let slot = thread.locals.borrow().get(number).cloned().unwrap_or(Slot::New);
        let value: Rc<dyn Any> = match slot {
            Slot::Alive(value) => value,
            Slot::Destroyed => return Err(AccessError),
            Slot::New => {
                let value: Rc<dyn Any> = Rc::new((self.init)());
                let mut locals = thread.locals.borrow_mut();
                if locals.len() <= number {
                    locals.resize(number + 1, Slot::New);
                }
                locals[number] = Slot::Alive(value.clone());
                if mem::needs_drop::<T>() {
                    thread.made.borrow_mut().push(number);
                }
                value
            }
        };
        Ok(value.downcast().unwrap_or_else(|_| unreachable!("a key has one type")))
    }

    pub fn try_with<R>(
        &'static self,
        f: impl FnOnce(&T) -> R,
    ) -> std::result::Result<R, AccessError> {
        self.value().map(|value| f(&value))
    }

    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        self.try_with(f).expect(
            "cannot access a Thread Local Storage value during or after destruction: AccessError",
        )
    }
}

impl<T: 'static> LocalKey<Cell<T>> {
    pub fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }

    pub fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.with(Cell::get)
    }

    pub fn take(&'static self) -> T
    where
        T: Default,
    {
        self.with(Cell::take)
    }

    pub fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T: 'static> LocalKey<RefCell<T>> {
    pub fn with_borrow<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        self.with(|cell| f(&cell.borrow()))
    }

    pub fn with_borrow_mut<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| f(&mut cell.borrow_mut()))
    }

    pub fn set(&'static self, value: T) {
        self.with(|cell| *cell.borrow_mut() = value);
    }

    pub fn take(&'static self) -> T
    where
        T: Default,
    {
        self.with(RefCell::take)
    }

    pub fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T: 'static> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

/// The end of the thread that runs: drops its thread-locals, the last that was made first, and
/// those that their destructors make.
pub(crate) fn destroy_locals() {
    let Some(thread) = scheduler::current() else {
        return;
    };
    loop {
        let Some(number) = thread.made.borrow_mut().pop() else {
            return;
        };
        let value = mem::replace(&mut thread.locals.borrow_mut()[number], Slot::Destroyed);
        drop(value);
    }
}
