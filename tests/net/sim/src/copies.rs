//! Atomics for the copies of dependencies. Their operations are points in some of the seeds only:
//! the queues and the tasks have tests of their own, and without their points the steps that are
//! left go deeper.

/// As `std::sync::atomic`.
pub mod atomic {
    pub use std::sync::atomic::{Ordering, compiler_fence, fence};
    crate::sync::atomic::atomics!(crate::scheduler::point_in_copies);
}
