//! The scheduler: which thread takes the next step, and when the clock moves.
//!
//! A simulated thread is a coroutine. It runs until it comes to a [`point`] where the policy
//! prefers another one, or until it must wait ([`wait_until`]). Whoever waits is nothing but a
//! predicate that it evaluates itself when it is resumed, and perhaps a deadline. When nobody can
//! run, the clock jumps to the earliest deadline; if there is none, it is a deadlock. Everything
//! that is decided is decided by one random generator, so that a seed replays exactly.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::clocks;

/// How the next thread is chosen.
#[derive(Clone, Copy, Debug)]
pub enum Policy {
    /// Any thread at each point.
    Uniform,
    /// The thread goes on with a probability of so many percent.
    Sticky(u64),
    /// Probabilistic concurrency testing (Burckhardt and others, 2010): the thread with the
    /// highest priority runs; at so many random points it loses it.
    Pct(u64),
}

/// What one run is to be like. All that is not fixed by the scenario is drawn from the seed.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub policy: Policy,
    /// What `available_parallelism` says.
    pub processors: usize,
    /// The operations inside of the dependencies are points, too.
    pub points_in_copies: bool,
    /// The clock jumps now and then although threads could run. Nothing is said of lateness then.
    pub clock_jumps: bool,
    /// Whoever sleeps with a deadline sleeps up to so long too long.
    pub slack: Duration,
    /// Condition variables and futexes return for no reason.
    pub spurious: bool,
    /// So many attempts to start a thread succeed, then so many fail.
    pub starts: Option<(usize, usize)>,
    /// How many steps one run may take.
    pub step_limit: u64,
    /// By how much the end may be later than what the scenario said that it needs. `None`: not
    /// looked at.
    pub late_limit: Option<Duration>,
    /// Whether all threads must come to rest in the end.
    pub must_rest: bool,
    /// Tell on stderr what went wrong.
    pub report: bool,
    /// Tell each step.
    pub verbose: bool,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Deadlock,
    Panic,
    StepLimit,
    Late,
    NoRest,
}

impl Outcome {
    pub const ALL: [Outcome; 6] = [
        Outcome::Passed,
        Outcome::Deadlock,
        Outcome::Panic,
        Outcome::StepLimit,
        Outcome::Late,
        Outcome::NoRest,
    ];
}

/// The end of a run, for whoever started it.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    pub outcome: Outcome,
    pub steps: u64,
    pub late: Duration,
}

/// A step that was taken, for the report.
#[derive(Clone, Copy)]
struct Step {
    thread: usize,
    now: u64,
    what: &'static str,
    at: &'static Location<'static>,
}

/// So many steps are remembered.
const REMEMBERED: usize = 80;
/// So many steps in a row without waiting, and a thread of the policy PCT loses its priority: it
/// may be spinning.
const SPINNING: u32 = 400;
/// So often the clock may move after the end of a scenario before all threads sleep for good.
const MOVES_BEFORE_REST: u32 = 60;
/// Stacks of the simulated threads, in bytes.
const STACK: usize = 256 << 10;
/// So many stacks are made before the fork, which is cheaper than in each child.
const STACKS: usize = 12;

/// What a coroutine says when it stops.
enum Stop {
    /// Another one shall run; this one could go on.
    Switch,
    /// It must wait.
    Wait,
}

pub(crate) struct Thread {
    pub(crate) id: usize,
    pub(crate) name: Option<String>,
    /// Started by the scenario, not by the library.
    of_the_scenario: bool,
    coroutine: RefCell<Option<Coroutine<(), Stop, (), DefaultStack>>>,
    yielder: Cell<*const Yielder<(), Stop>>,
    pub(crate) ended: Cell<bool>,
    waits: Cell<bool>,
    deadline: Cell<Option<u64>>,
    /// The state of the world in which it was last seen to have to wait.
    seen: Cell<u64>,
    what: Cell<&'static str>,
    at: Cell<&'static Location<'static>>,
    priority: Cell<i64>,
    in_a_row: Cell<u32>,
    /// How often it has gone on after a wait.
    wakes: Cell<u64>,
    pub(crate) locals: RefCell<Vec<Slot>>,
    /// The keys in the order in which their values were made.
    pub(crate) made: RefCell<Vec<usize>>,
}

/// A thread-local's value on one thread.
#[derive(Clone)]
pub(crate) enum Slot {
    New,
    Alive(Rc<dyn Any>),
    Destroyed,
}

struct Sim {
    active: Cell<bool>,
    config: RefCell<Option<Config>>,
    threads: RefCell<Vec<Rc<Thread>>>,
    current: RefCell<Option<Rc<Thread>>>,
    next: Cell<usize>,
    random: Cell<u64>,
    /// Nanoseconds since the beginning.
    now: Cell<u64>,
    steps: Cell<u64>,
    /// Counts what may have made a predicate true.
    world: Cell<u64>,
    policy: Cell<Policy>,
    /// Steps at which PCT takes a priority away.
    changes: RefCell<Vec<u64>>,
    lowest: Cell<i64>,
    points_in_copies: Cell<bool>,
    jumps: Cell<bool>,
    spurious: Cell<bool>,
    step_limit: Cell<u64>,
    starts: Cell<usize>,
    /// What the scenario said that it needs.
    needs: Cell<u64>,
    /// By how much the scenario was late, once it is over.
    late: Cell<u64>,
    resting: Cell<bool>,
    /// What is to be checked when all threads sleep for good.
    at_rest: RefCell<Vec<fn()>>,
    expects_panics: Cell<bool>,
    /// In the child of a simulated fork.
    pub(crate) forked: Cell<bool>,
    trace: RefCell<VecDeque<Step>>,
    verbose: Cell<bool>,
    stacks: RefCell<Vec<DefaultStack>>,
    tell: Cell<Option<fn(Verdict)>>,
}

thread_local! {
    static SIM: Sim = const {
        Sim {
            active: Cell::new(false),
            config: RefCell::new(None),
            threads: RefCell::new(Vec::new()),
            current: RefCell::new(None),
            next: Cell::new(0),
            random: Cell::new(1),
            now: Cell::new(0),
            steps: Cell::new(0),
            world: Cell::new(1),
            policy: Cell::new(Policy::Uniform),
            changes: RefCell::new(Vec::new()),
            lowest: Cell::new(-1),
            points_in_copies: Cell::new(false),
            jumps: Cell::new(false),
            spurious: Cell::new(false),
            step_limit: Cell::new(0),
            starts: Cell::new(0),
            needs: Cell::new(0),
            late: Cell::new(0),
            resting: Cell::new(false),
            at_rest: RefCell::new(Vec::new()),
            expects_panics: Cell::new(false),
            forked: Cell::new(false),
            trace: RefCell::new(VecDeque::new()),
            verbose: Cell::new(false),
            stacks: RefCell::new(Vec::new()),
            tell: Cell::new(None),
        }
    };
}

/// Makes the stacks of the first threads. To be called before the fork.
pub fn prepare() {
    SIM.with(|sim| {
        let mut stacks = sim.stacks.borrow_mut();
        while stacks.len() < STACKS {
            stacks.push(DefaultStack::new(STACK).expect("there is memory for a stack"));
        }
    });
}

/// Runs the scenario on a simulated thread, and all that it starts, until everything has come to
/// rest. Tells the verdict and ends the process.
pub fn simulate(config: Config, tell: fn(Verdict), scenario: fn()) -> ! {
    std::panic::set_hook(Box::new(|info| {
        let expected = SIM.with(|sim| sim.expects_panics.get());
        if !expected {
            fail(Outcome::Panic, &info.to_string());
        }
    }));
    SIM.with(|sim| {
        sim.random.set(config.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..4 {
            next_random(sim);
        }
        sim.policy.set(config.policy);
        if let Policy::Pct(depth) = config.policy {
            let mut changes = sim.changes.borrow_mut();
            *changes = (0..depth).map(|_| next_random(sim) % 600).collect();
            changes.sort_unstable_by(|a, b| b.cmp(a));
        }
        sim.points_in_copies.set(config.points_in_copies);
        sim.jumps.set(config.clock_jumps);
        sim.spurious.set(config.spurious);
        sim.step_limit.set(config.step_limit);
        sim.verbose.set(config.verbose);
        *sim.config.borrow_mut() = Some(config);
        sim.tell.set(Some(tell));
        sim.active.set(true);
    });
    spawn(Some("main".into()), true, move || {
        scenario();
        SIM.with(|sim| sim.resting.set(true));
        check_lateness();
    });
    schedule()
}

/// Lets threads run until there is nothing more to do.
fn schedule() -> ! {
    let mut moves = 0;
    loop {
        while let Some(thread) = SIM.with(choose) {
            resume(&thread);
        }
        // Nobody can run.
        let resting = SIM.with(|sim| sim.resting.get());
        if resting {
            moves += 1;
            let must_rest = config(|config| config.must_rest);
            if moves > MOVES_BEFORE_REST && must_rest {
                fail(
                    Outcome::NoRest,
                    "the threads wake again and again although nothing is to be done",
                );
            }
            if moves > MOVES_BEFORE_REST || !move_clock() {
                for check in SIM.with(|sim| sim.at_rest.take()) {
                    check();
                }
                verdict(Outcome::Passed);
            }
        } else if !move_clock() {
            fail(Outcome::Deadlock, "all threads wait, and none has a deadline");
        }
    }
}

/// The thread that shall run now, if one may be able to.
fn choose(sim: &Sim) -> Option<Rc<Thread>> {
    let threads = sim.threads.borrow();
    let world = sim.world.get();
    let can = |thread: &Rc<Thread>| {
        !(thread.ended.get() || thread.waits.get() && thread.seen.get() == world)
    };
    let wished = sim.next.replace(usize::MAX);
    if let Some(thread) = threads.get(wished).filter(|thread| can(thread)) {
        return Some(thread.clone());
    }
    if let Policy::Pct(_) = sim.policy.get() {
        return threads.iter().filter(|t| can(t)).max_by_key(|t| t.priority.get()).cloned();
    }
    let count = threads.iter().filter(|t| can(t)).count();
    if count == 0 {
        return None;
    }
    let place = next_random(sim) as usize % count;
    threads.iter().filter(|t| can(t)).nth(place).cloned()
}

/// Lets a thread run until it stops.
fn resume(thread: &Rc<Thread>) {
    SIM.with(|sim| *sim.current.borrow_mut() = Some(thread.clone()));
    let mut coroutine = thread.coroutine.borrow_mut();
    let Some(running) = coroutine.as_mut() else {
        return;
    };
    match running.resume(()) {
        CoroutineResult::Yield(Stop::Switch) => thread.waits.set(false),
        CoroutineResult::Yield(Stop::Wait) => thread.waits.set(true),
        CoroutineResult::Return(()) => {
            thread.ended.set(true);
            let stack = coroutine.take().map(Coroutine::into_stack);
            SIM.with(|sim| {
                sim.stacks.borrow_mut().extend(stack);
                sim.world.set(sim.world.get() + 1);
            });
        }
    }
}

/// Moves the clock to the earliest deadline. `false` if there is none.
fn move_clock() -> bool {
    let waiting = SIM.with(|sim| {
        let threads = sim.threads.borrow();
        threads.iter().filter(|t| !t.ended.get()).filter_map(|t| t.deadline.get()).min()
    });
    let Some(earliest) = waiting.into_iter().chain(clocks::earliest()).min() else {
        return false;
    };
    let slack = config(|config| config.slack).as_nanos() as u64;
    let slack = if slack > 0 { random(slack) } else { 0 };
    advance(earliest.max(now()) + slack);
    true
}

fn advance(to: u64) {
    SIM.with(|sim| {
        sim.now.set(to);
        sim.world.set(sim.world.get() + 1);
    });
    clocks::fire(to);
}

fn next_random(sim: &Sim) -> u64 {
    // xorshift64* (Vigna 2016).
    let mut x = sim.random.get();
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    sim.random.set(x);
    x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 20
}

/// A random number below `limit`.
pub fn random(limit: u64) -> u64 {
    SIM.with(|sim| next_random(sim) % limit.max(1))
}

/// What the configuration says.
pub fn config<T>(f: impl FnOnce(&Config) -> T) -> T {
    SIM.with(|sim| f(sim.config.borrow().as_ref().expect("a simulation is under way")))
}

/// Whether a simulation is under way.
#[inline]
pub fn is_active() -> bool {
    SIM.with(|sim| sim.active.get())
}

/// The virtual time, in nanoseconds.
pub fn now() -> u64 {
    SIM.with(|sim| sim.now.get())
}

/// A step on something that threads share: another one may be chosen first.
#[inline]
pub fn point(what: &'static str, at: &'static Location<'static>) {
    SIM.with(|sim| {
        if sim.active.get() {
            take_point(sim, what, at);
        }
    });
}

/// The same inside of a dependency.
#[inline]
pub fn point_in_copies(what: &'static str, at: &'static Location<'static>) {
    SIM.with(|sim| {
        if sim.active.get() && sim.points_in_copies.get() {
            take_point(sim, what, at);
        }
    });
}

fn take_point(sim: &Sim, what: &'static str, at: &'static Location<'static>) {
    let Some(thread) = note(sim, what, at) else {
        return;
    };
    // Whoever unwinds goes on: the OS thread counts its panics, and has only one count for all
    // coroutines.
    if std::thread::panicking() {
        return;
    }
    if sim.jumps.get() && !sim.resting.get() && next_random(sim).is_multiple_of(128) {
        advance(sim.now.get() + next_random(sim) % 10_000_000);
    }
    let switch = match sim.policy.get() {
        Policy::Uniform => true,
        Policy::Sticky(percent) => next_random(sim) % 100 >= percent,
        Policy::Pct(_) => {
            let due = |changes: &RefCell<Vec<u64>>| changes.borrow().last().copied();
            if due(&sim.changes).is_some_and(|step| step <= sim.steps.get()) {
                sim.changes.borrow_mut().pop();
                demote(sim, &thread);
            }
            thread.in_a_row.set(thread.in_a_row.get() + 1);
            if thread.in_a_row.get() > SPINNING {
                demote(sim, &thread);
            }
            let mine = thread.priority.get();
            let threads = sim.threads.borrow();
            threads.iter().any(|other| !other.ended.get() && other.priority.get() > mine)
        }
    };
    if switch {
        if !matches!(sim.policy.get(), Policy::Pct(_)) {
            let count = sim.threads.borrow().len() as u64;
            let wished = (next_random(sim) % count) as usize;
            if wished == thread.id {
                return;
            }
            sim.next.set(wished);
        }
        suspend(&thread, Stop::Switch);
    }
}

/// Takes a thread's priority away.
fn demote(sim: &Sim, thread: &Thread) {
    thread.in_a_row.set(0);
    thread.priority.set(sim.lowest.get());
    sim.lowest.set(sim.lowest.get() - 1);
}

/// Counts and remembers a step. Gives the thread that takes it.
fn note(sim: &Sim, what: &'static str, at: &'static Location<'static>) -> Option<Rc<Thread>> {
    let thread = sim.current.borrow().clone()?;
    sim.steps.set(sim.steps.get() + 1);
    sim.world.set(sim.world.get() + 1);
    thread.what.set(what);
    thread.at.set(at);
    let step = Step { thread: thread.id, now: sim.now.get(), what, at };
    if sim.verbose.get() {
        eprintln!("{}", show(sim, step));
    }
    {
        let mut trace = sim.trace.borrow_mut();
        if trace.len() == REMEMBERED {
            trace.pop_front();
        }
        trace.push_back(step);
    }
    if sim.steps.get() > sim.step_limit.get() {
        fail(Outcome::StepLimit, "too many steps: threads run in circles");
    }
    Some(thread)
}

/// Gives the processor away.
#[allow(unsafe_code)]
fn suspend(thread: &Rc<Thread>, stop: Stop) {
    let yielder = thread.yielder.get();
    // SAFETY: the pointer was set by the coroutine of this thread, which is the one that runs
    // here, and whose yielder lives as long as the coroutine does.
    unsafe { (*yielder).suspend(stop) };
}

/// Lets others run once, whatever the policy says.
#[track_caller]
pub fn yield_now() {
    let at = Location::caller();
    SIM.with(|sim| {
        if !sim.active.get() {
            return;
        }
        let Some(thread) = note(sim, "yield", at) else {
            return;
        };
        demote(sim, &thread);
        if !std::thread::panicking() {
            suspend(&thread, Stop::Switch);
        }
    });
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The predicate is true.
    True,
    Timeout,
    /// For no reason.
    Spurious,
}

/// Waits until the predicate is true, or until the deadline. What it looks at must be changed by
/// steps of other threads or by the clock only.
pub fn wait_until(
    what: &'static str,
    at: &'static Location<'static>,
    deadline: Option<u64>,
    may_be_spurious: bool,
    mut is_true: impl FnMut() -> bool,
) -> Woken {
    let thread = SIM.with(|sim| sim.current.borrow().clone());
    let Some(thread) = thread.filter(|_| is_active()) else {
        assert!(is_true(), "nobody can wait outside of a simulation: {what} at {at}");
        return Woken::True;
    };
    let mut first = true;
    loop {
        let woken = if is_true() {
            Some(Woken::True)
        } else if deadline.is_some_and(|at| at <= now()) {
            Some(Woken::Timeout)
        } else if may_be_spurious && !first && SIM.with(|sim| sim.spurious.get()) && random(64) == 0
        {
            Some(Woken::Spurious)
        } else {
            None
        };
        if let Some(woken) = woken {
            thread.deadline.set(None);
            if !first {
                // What comes for no reason is nobody's fault.
                thread.wakes.set(thread.wakes.get() + u64::from(woken != Woken::Spurious));
                let what = match woken {
                    Woken::True => "go on",
                    Woken::Timeout => "time is up",
                    Woken::Spurious => "go on for no reason",
                };
                SIM.with(|sim| note(sim, what, at));
            }
            return woken;
        }
        first = false;
        thread.what.set(what);
        thread.at.set(at);
        thread.deadline.set(deadline);
        thread.in_a_row.set(0);
        thread.seen.set(SIM.with(|sim| sim.world.get()));
        suspend(&thread, Stop::Wait);
    }
}

/// Starts a simulated thread.
pub(crate) fn spawn(
    name: Option<String>,
    of_the_scenario: bool,
    main: impl FnOnce() + 'static,
) -> Rc<Thread> {
    SIM.with(|sim| {
        let id = sim.threads.borrow().len();
        let thread = Rc::new(Thread {
            id,
            name,
            of_the_scenario,
            coroutine: RefCell::new(None),
            yielder: Cell::new(std::ptr::null()),
            ended: Cell::new(false),
            waits: Cell::new(false),
            deadline: Cell::new(None),
            seen: Cell::new(0),
            what: Cell::new("start"),
            at: Cell::new(Location::caller()),
            priority: Cell::new((next_random(sim) % 1_000_000) as i64),
            in_a_row: Cell::new(0),
            wakes: Cell::new(0),
            locals: RefCell::new(Vec::new()),
            made: RefCell::new(Vec::new()),
        });
        let stack = sim.stacks.borrow_mut().pop();
        let stack =
            stack.unwrap_or_else(|| DefaultStack::new(STACK).expect("there is memory for a stack"));
        let this = thread.clone();
        let body = move |yielder: &Yielder<(), Stop>, ()| {
            this.yielder.set(yielder);
            if catch_unwind(AssertUnwindSafe(main)).is_err() {
                fail(Outcome::Panic, "a thread has ended with a panic");
            }
            crate::thread::destroy_locals();
        };
        *thread.coroutine.borrow_mut() = Some(Coroutine::with_stack(stack, body));
        sim.threads.borrow_mut().push(thread.clone());
        sim.world.set(sim.world.get() + 1);
        thread
    })
}

/// The thread that runs.
pub(crate) fn current() -> Option<Rc<Thread>> {
    SIM.with(|sim| sim.current.borrow().clone())
}

/// Whether the thread that runs was started by the scenario and not by the library.
pub fn is_thread_of_the_scenario() -> bool {
    current().is_some_and(|thread| thread.of_the_scenario)
}

/// Whether the attempt to start a thread that is under way shall fail.
pub(crate) fn start_fails() -> bool {
    SIM.with(|sim| {
        let attempt = sim.starts.replace(sim.starts.get() + 1);
        let starts = sim.config.borrow().as_ref().and_then(|config| config.starts);
        starts.is_some_and(|(good, bad)| attempt >= good && attempt < good.saturating_add(bad))
    })
}

/// How many attempts to start a thread there were.
pub fn starts() -> usize {
    SIM.with(|sim| sim.starts.get())
}

/// From now on, the first so many attempts succeed and the next so many fail.
pub fn set_starts(good: usize, bad: usize) {
    SIM.with(|sim| {
        sim.starts.set(0);
        if let Some(config) = sim.config.borrow_mut().as_mut() {
            config.starts = Some((good, bad));
        }
    });
}

/// The scenario needs so much time more; what it takes beyond that is lateness.
pub fn needs(time: Duration) {
    SIM.with(|sim| sim.needs.set(sim.needs.get() + time.as_nanos() as u64));
}

/// Checks something when all threads sleep for good.
pub fn at_rest(check: fn()) {
    SIM.with(|sim| sim.at_rest.borrow_mut().push(check));
}

/// Panics are part of the scenario while this is set.
pub fn expect_panics(yes: bool) {
    SIM.with(|sim| sim.expects_panics.set(yes));
}

/// The scenario is over: was it late?
fn check_lateness() {
    let late = SIM.with(|sim| {
        sim.late.set(sim.now.get().saturating_sub(sim.needs.get()));
        Duration::from_nanos(sim.late.get())
    });
    if config(|config| config.late_limit).is_some_and(|limit| late > limit) {
        fail(Outcome::Late, &format!("the scenario is late by {late:?}"));
    }
}

/// What needs no time must take none: the clock moves only when nobody can run. Not looked at
/// where time means nothing.
#[track_caller]
pub fn at_once<T>(f: impl FnOnce() -> T) -> T {
    takes(Duration::ZERO, f)
}

/// The same for something that needs so much time and no more.
#[track_caller]
pub fn takes<T>(time: Duration, f: impl FnOnce() -> T) -> T {
    let before = now();
    let output = f();
    let took = Duration::from_nanos(now() - before);
    if took > time && config(|config| config.late_limit.is_some()) {
        let at = Location::caller();
        fail(Outcome::Late, &format!("this took {took:?} instead of {time:?}: {at}"));
    }
    output
}

/// Whether the clock jumps or has slack here.
pub fn time_means_nothing() -> bool {
    config(|config| config.late_limit.is_none())
}

/// How often the threads of this name have gone on after a wait.
pub fn wakes_of(name: &str) -> u64 {
    SIM.with(|sim| {
        let threads = sim.threads.borrow();
        let named = threads.iter().filter(|thread| thread.name.as_deref() == Some(name));
        named.map(|thread| thread.wakes.get()).sum()
    })
}

/// How many threads are alive whose names begin like this.
pub fn alive(name: &str) -> usize {
    SIM.with(|sim| {
        let threads = sim.threads.borrow();
        let alive = threads.iter().filter(|thread| !thread.ended.get());
        alive.filter(|thread| thread.name.as_deref().is_some_and(|it| it.starts_with(name))).count()
    })
}

/// Says whether a simulated fork's child ended well. It has this thread only; the others are gone.
#[allow(unsafe_code)]
pub fn fork(child: impl FnOnce()) -> bool {
    // SAFETY: the process has one OS thread, so that the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork(2) failed");
    if pid == 0 {
        let this = current().map(|thread| thread.id);
        SIM.with(|sim| {
            sim.forked.set(true);
            for thread in sim.threads.borrow().iter() {
                thread.ended.set(Some(thread.id) != this);
            }
        });
        child();
        std::process::exit(0);
    }
    let pid = rustix::process::Pid::from_raw(pid);
    let status = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    matches!(status, Ok(Some((_, status))) if status.exit_status() == Some(0))
}

/// Whether this is the child of a simulated fork.
pub fn is_forked() -> bool {
    SIM.with(|sim| sim.forked.get())
}

/// Ends the run.
fn verdict(outcome: Outcome) -> ! {
    let (steps, late, tell) = SIM.with(|sim| (sim.steps.get(), sim.late.get(), sim.tell.get()));
    // The child of a simulated fork tells its parent by its status only.
    if let (Some(tell), false) = (tell, is_forked()) {
        tell(Verdict { outcome, steps, late: Duration::from_nanos(late) });
    }
    std::process::exit(if outcome == Outcome::Passed { 0 } else { 1 });
}

/// Ends the run with a failure.
pub fn fail(outcome: Outcome, message: &str) -> ! {
    SIM.with(|sim| {
        sim.active.set(false);
        let config = sim.config.borrow();
        let Some(config) = config.as_ref().filter(|config| config.report) else {
            return;
        };
        eprintln!("  {outcome:?}: {message}");
        eprintln!(
            "  {:?}, {} processors, points in copies: {}, jumps: {}, slack: {:?}, spurious: {}, \
             starts: {:?}",
            config.policy,
            config.processors,
            config.points_in_copies,
            config.clock_jumps,
            config.slack,
            config.spurious,
            config.starts,
        );
        eprintln!("  step {} at {:?}, the last ones:", sim.steps.get(), time(sim.now.get()));
        for step in sim.trace.borrow().iter() {
            eprintln!("  {}", show(sim, *step));
        }
        for thread in sim.threads.borrow().iter().filter(|thread| !thread.ended.get()) {
            let until = thread.deadline.get().map(|at| format!(" until {:?}", time(at)));
            eprintln!(
                "  {} {}: {}{} at {}",
                if thread.waits.get() { "waits" } else { "ready" },
                thread.name.as_deref().unwrap_or("?"),
                thread.what.get(),
                until.unwrap_or_default(),
                place(thread.at.get()),
            );
        }
    });
    verdict(outcome)
}

fn time(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

/// A place in the source, without the directories.
fn place(at: &Location<'_>) -> String {
    let file = at.file().rsplit('/').next().unwrap_or_default();
    format!("{file}:{}", at.line())
}

fn show(sim: &Sim, step: Step) -> String {
    let threads = sim.threads.borrow();
    let name = threads.get(step.thread).and_then(|thread| thread.name.clone()).unwrap_or_default();
    let ms = step.now as f64 / 1e6;
    format!("{ms:>9.3} ms  {name:>12}  {:<18} {}", step.what, place(step.at))
}
