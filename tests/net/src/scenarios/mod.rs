//! The scenarios: small programs in which something could go wrong, each a function with a
//! sentence for a name.
//!
//! For each mechanism of the runtime there is one in which it is the only thing that helps.

use std::time::Duration;

mod busy;
mod executors;
mod idle;
mod local;
mod main_futures;
mod pool;
mod simulation;
mod sockets;
mod tasks;
mod threads;

/// A program and what is allowed in it.
pub struct Scenario {
    pub name: &'static str,
    pub run: fn(),
    /// How many processors there are: drawn from this range.
    pub processors: (usize, usize),
    /// Up to so many threads can be started, then up to so many attempts fail. `None`: none fails.
    pub starts: Option<(usize, usize)>,
    /// By how much it may be later than it says it needs. What comes by the watcher's tick only
    /// is 4 ms late or more.
    pub may_be_late: Duration,
    /// The clock may jump although threads could run; not where the scenario has timeouts of its
    /// own.
    pub time_may_jump: bool,
    pub step_limit: u64,
    /// Only one in so many schedules is run: each has many steps.
    pub one_in: u64,
}

impl Scenario {
    const fn new(name: &'static str, run: fn()) -> Scenario {
        Scenario {
            name,
            run,
            processors: (1, 3),
            starts: None,
            may_be_late: Duration::from_millis(1),
            time_may_jump: true,
            step_limit: 60_000,
            one_in: 1,
        }
    }

    /// There are so many processors.
    const fn processors(mut self, low: usize, high: usize) -> Scenario {
        self.processors = (low, high);
        self
    }

    /// Some attempts to start a thread fail.
    const fn starts(mut self, good: usize, bad: usize) -> Scenario {
        self.starts = Some((good, bad));
        self
    }

    /// The watcher is needed: two of its ticks and the time to see them.
    const fn needs_the_watcher(self) -> Scenario {
        self.may_be_late(15)
    }

    const fn may_be_late(mut self, millis: u64) -> Scenario {
        self.may_be_late = Duration::from_millis(millis);
        self
    }

    const fn steady_clock(mut self) -> Scenario {
        self.time_may_jump = false;
        self
    }

    /// Each schedule has many steps, and only one in so many is run.
    const fn one_in(mut self, schedules: u64) -> Scenario {
        self.one_in = schedules;
        self
    }

    const fn steps(mut self, limit: u64) -> Scenario {
        self.step_limit = limit;
        self
    }
}

/// The scenario that a function is.
macro_rules! scenario {
    ($name:ident) => {
        $crate::scenarios::Scenario::new(stringify!($name), $name)
    };
}
use scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    let files = [
        simulation::all(),
        tasks::all(),
        main_futures::all(),
        sockets::all(),
        pool::all(),
        local::all(),
        executors::all(),
        idle::all(),
        busy::all(),
        threads::all(),
    ];
    files.into_iter().flatten().collect()
}
