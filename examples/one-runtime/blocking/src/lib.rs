//! The face of `blocking` 1, on smol's thread pool. See the README one folder up.

pub use smol::{Task, Unblock, unblock};
