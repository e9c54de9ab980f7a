//! The face of `async-executor` 1, on smol's executors. See the README one folder up.

pub use smol::{FallibleTask, Task};
use std::{
    future::Future,
    ops::Deref,
    panic::{RefUnwindSafe, UnwindSafe},
};

/// An executor of ours by the name of one of theirs. `spawn`, `run`, `tick` and so on are its own.
macro_rules! executor {
    ($(#[$doc:meta])* $name:ident $(<$a:lifetime>)? ($ours:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name $(<$a>)? ($ours);

        impl $(<$a>)? $name $(<$a>)? {
            /// An executor without tasks.
            pub const fn new() -> Self {
                Self(<$ours>::new())
            }
        }

        impl $(<$a>)? Deref for $name $(<$a>)? {
            type Target = $ours;

            fn deref(&self) -> &$ours {
                &self.0
            }
        }

        impl $(<$a>)? UnwindSafe for $name $(<$a>)? {}
        impl $(<$a>)? RefUnwindSafe for $name $(<$a>)? {}
    };
}

executor! {
    /// [`smol::Executor`], and what it has not. Its futures are `'static`.
    Executor<'a>(smol::Executor<'a>)
}

executor! {
    /// [`smol::LocalExecutor`], and what it has not. Its futures are `'static`.
    LocalExecutor<'a>(smol::LocalExecutor<'a>)
}

executor! {
    /// An [`Executor`] for a `static`. Theirs is faster than the other one; here it is the same.
    StaticExecutor(smol::Executor<'static>)
}

executor! {
    /// A [`LocalExecutor`] that lives for ever. Theirs is faster; here it is the same.
    StaticLocalExecutor(smol::LocalExecutor<'static>)
}

impl Executor<'_> {
    /// Spawns tasks, and puts their handles into a collection.
    pub fn spawn_many<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        futures: impl IntoIterator<Item = F>,
        handles: &mut impl Extend<Task<T>>,
    ) {
        handles.extend(futures.into_iter().map(|future| self.0.spawn(future)));
    }
}

impl LocalExecutor<'_> {
    /// Spawns tasks, and puts their handles into a collection.
    pub fn spawn_many<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        futures: impl IntoIterator<Item = F>,
        handles: &mut impl Extend<Task<T>>,
    ) {
        handles.extend(futures.into_iter().map(|future| self.0.spawn(future)));
    }
}

impl Executor<'static> {
    /// Makes it live for ever.
    pub fn leak(self) -> &'static StaticExecutor {
        Box::leak(Box::new(StaticExecutor(self.0)))
    }
}

impl LocalExecutor<'static> {
    /// Makes it live for ever.
    pub fn leak(self) -> &'static StaticLocalExecutor {
        Box::leak(Box::new(StaticLocalExecutor(self.0)))
    }
}
