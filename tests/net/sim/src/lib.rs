//! A standard library whose threads, locks and clock are simulated.
//!
//! `extern crate sim as std;` makes the code below it use this crate where it says `std`. What is
//! not simulated is std's own ([`pub use ::std::*`]); the modules here take the place of those of
//! the same name.
//!
//! - [`scheduler`]: the simulation itself. Threads are coroutines on one OS thread; each step on
//!   something shared is a *point* at which another thread may be chosen.
//! - [`sync`] and [`sync::atomic`], [`thread`] (with thread-locals that are destroyed), [`time`]:
//!   the parts of std.
//! - [`copies`]: the same atomics for the dependencies, whose points can be switched off.
//! - [`clocks`]: descriptors that become readable at a moment of the virtual time.
//! - [`process`] and [`env`](mod@env): children that are no processes, the number of this
//!   process, and variables of one run.
//!
//! Outside of a simulation (before [`scheduler::simulate`]) all of it works as in std, for one
//! thread.

#![deny(unsafe_code)]
#![allow(missing_docs)]

pub use ::std::*;

pub mod clocks;
pub mod copies;
pub mod env;
pub mod process;
pub mod scheduler;
pub mod sync;
pub mod thread;
pub mod time;

/// The macro of std, with [`thread::LocalKey`].
#[macro_export]
macro_rules! thread_local {
    () => {};
    ($(#[$attr:meta])* $vis:vis static $name:ident: $t:ty = const { $init:expr }; $($rest:tt)*) => {
        $crate::thread_local!($(#[$attr])* $vis static $name: $t = const { $init });
        $crate::thread_local!($($rest)*);
    };
    ($(#[$attr:meta])* $vis:vis static $name:ident: $t:ty = const { $init:expr }) => {
        $crate::thread_local!($(#[$attr])* $vis static $name: $t = $init);
    };
    ($(#[$attr:meta])* $vis:vis static $name:ident: $t:ty = $init:expr; $($rest:tt)*) => {
        $crate::thread_local!($(#[$attr])* $vis static $name: $t = $init);
        $crate::thread_local!($($rest)*);
    };
    ($(#[$attr:meta])* $vis:vis static $name:ident: $t:ty = $init:expr) => {
        $(#[$attr])* $vis static $name: $crate::thread::LocalKey<$t> = {
            fn init() -> $t { $init }
            $crate::thread::LocalKey::new(init)
        };
    };
}
