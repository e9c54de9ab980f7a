//! What scenarios are written with. `std` is the simulated one here, too.

use std::future::{Future, poll_fn};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::smol::Async;

pub use sim::scheduler::{
    alive, at_once, at_rest, expect_panics, fork, is_thread_of_the_scenario, needs, random,
    set_starts, starts, takes, time_means_nothing, wakes_of,
};

/// Starts a thread of the scenario, which always succeeds.
pub fn thread<T: Send + 'static>(
    name: &str,
    main: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::spawn_for_the_scenario(name, main)
}

/// Waits for threads.
pub fn join<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// More attempts to start a thread than any scenario makes.
pub const ALL: usize = 1_000_000;

/// Yes or no.
pub fn perhaps() -> bool {
    random(2) == 0
}

/// Placement: what is polled here is polled by a thread of the runtime.
#[track_caller]
pub fn on_a_worker() {
    assert!(!is_thread_of_the_scenario(), "a task was polled on a thread of the scenario");
}

/// Placement: what is polled here is polled by a thread of the scenario.
#[track_caller]
pub fn on_my_thread() {
    assert!(is_thread_of_the_scenario(), "this was polled on a thread of the runtime");
}

/// A value on its way to one receiver, written by hand with a lock and a waker.
struct Slot<T> {
    value: Option<T>,
    closed: bool,
    waker: Option<Waker>,
}

pub struct Sender<T>(Arc<Mutex<Slot<T>>>);
pub struct Receiver<T>(Arc<Mutex<Slot<T>>>);

pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Mutex::new(Slot { value: None, closed: false, waker: None }));
    (Sender(slot.clone()), Receiver(slot))
}

impl<T> Sender<T> {
    /// Says whether somebody may receive it.
    pub fn send(self, value: T) -> bool {
        let waker = {
            let mut slot = self.0.lock().unwrap();
            slot.value = Some(value);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Arc::strong_count(&self.0) > 1
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = self.0.lock().unwrap();
            slot.closed = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let old = {
            let mut slot = self.0.lock().unwrap();
            if let Some(value) = slot.value.take() {
                return Poll::Ready(Some(value));
            }
            if slot.closed {
                return Poll::Ready(None);
            }
            slot.waker.replace(cx.waker().clone())
        };
        drop(old);
        Poll::Pending
    }
}

/// Something that threads block on, as other people's code does.
#[derive(Clone, Default)]
pub struct Flag(Arc<(Mutex<bool>, Condvar)>);

impl Flag {
    pub fn set(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    pub fn wait(&self) {
        let set = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(set, |set| !*set).unwrap());
    }
}

/// Conservation: what has begun ends exactly once, be it finished or dropped.
#[derive(Clone, Default)]
pub struct Tally(Arc<(AtomicUsize, AtomicUsize)>);

pub struct Counted(Tally);

impl Tally {
    /// To be moved into what is counted.
    pub fn begin(&self) -> Counted {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        Counted(self.clone())
    }

    /// How many have begun and ended.
    pub fn counts(&self) -> (usize, usize) {
        let (begun, ended) = &*self.0;
        (begun.load(Ordering::SeqCst), ended.load(Ordering::SeqCst))
    }

    #[track_caller]
    pub fn all_have_ended(&self, begun: usize) {
        assert_eq!(self.counts(), (begun, begun), "begun and ended");
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls a future once, and leaves its waker behind.
pub async fn once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// A future that waits before it does its work; what wakes it; and what tells that it waits. (What
/// a task has woken may run next on its worker, while a new task waits behind all others.)
pub fn waits<T>(
    work: impl Future<Output = T>,
) -> (impl Future<Output = T>, Sender<()>, Receiver<()>) {
    let ((wake, mut woken), (waiting, is_waiting)) = (oneshot(), oneshot());
    let future = async move {
        once(&mut woken).await;
        waiting.send(());
        woken.await;
        work.await
    };
    (future, wake, is_waiting)
}

/// Lets others run so many times.
pub async fn yields(times: u64) {
    for _ in 0..times {
        crate::smol::future::yield_now().await;
    }
}

/// Somebody else's `block_on`, which knows nothing of the runtime.
pub fn foreign_block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        thread::park();
    }
}

/// Two ends of a connection.
pub fn socket_pair() -> (Async<UnixStream>, Async<UnixStream>) {
    let (left, right) = UnixStream::pair().unwrap();
    (Async::new(left).unwrap(), Async::new(right).unwrap())
}
