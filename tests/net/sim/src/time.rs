//! The virtual clock.

pub use std::time::{Duration, SystemTime, UNIX_EPOCH};

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use crate::scheduler;

/// A moment of the virtual time, which begins at an hour, so that one can look back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

const BEGINNING: Duration = Duration::from_secs(3600);

impl Instant {
    pub fn now() -> Instant {
        Instant(BEGINNING + Duration::from_nanos(scheduler::now()))
    }

    pub fn elapsed(&self) -> Duration {
        Instant::now().duration_since(*self)
    }

    pub fn duration_since(&self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub fn checked_duration_since(&self, earlier: Instant) -> Option<Duration> {
        self.0.checked_sub(earlier.0)
    }

    pub fn checked_add(&self, time: Duration) -> Option<Instant> {
        // As on Linux, where seconds are an i64.
        let at = self.0.checked_add(time)?;
        (at.as_secs() <= i64::MAX as u64).then_some(Instant(at))
    }

    pub fn checked_sub(&self, time: Duration) -> Option<Instant> {
        self.0.checked_sub(time).map(Instant)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, time: Duration) -> Instant {
        self.checked_add(time).expect("overflow when adding duration to instant")
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, time: Duration) -> Instant {
        self.checked_sub(time).expect("overflow when subtracting duration from instant")
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.duration_since(earlier)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, time: Duration) {
        *self = *self - time;
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instant({:?})", self.0.saturating_sub(BEGINNING))
    }
}

/// The deadline, in nanoseconds of the virtual time, of something that takes so long from now.
pub(crate) fn deadline(timeout: Duration) -> Option<u64> {
    let nanos = u64::try_from(timeout.as_nanos()).ok()?;
    scheduler::now().checked_add(nanos)
}
