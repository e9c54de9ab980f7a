//! The watchdog.

use std::{
    io::Write,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

/// Runs a future, and ends the whole process with a message if that takes longer than a minute.
pub(crate) fn within_a_minute<T>(future: impl Future<Output = T>) -> T {
    let (done, alarm) = channel::<()>();
    let watchdog = thread::Builder::new().name("watchdog".into());
    let name = thread::current().name().unwrap_or("?").to_string();
    let watchdog = watchdog.spawn(move || {
        if alarm.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            // Not `eprintln!`: the test harness would swallow it.
            let _ = writeln!(std::io::stderr(), "\nWATCHDOG: {name} still runs after 60 s");
            std::process::abort();
        }
    });
    let output = smol::block_on(future);
    drop(done);
    watchdog.expect("cannot start the watchdog").join().expect("the watchdog failed");
    output
}
