//! Sleeps for a second, then ticks three times.
//!
//! Run with:
//!
//! ```text
//! cargo run --example timer-sleep
//! cargo run --example timer-sleep -- 100      # in milliseconds
//! ```

use std::time::{Duration, Instant};

use smol::Timer;
use smol::prelude::*;

fn main() {
    let millis = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1000);
    let duration = Duration::from_millis(millis);

    smol::block_on(async {
        let start = Instant::now();

        // `thread::sleep` would stop the thread and all its tasks; a timer stops only who awaits
        // it.
        Timer::after(duration).await;
        println!("Slept {} ms", start.elapsed().as_millis());

        // A timer is also a stream of ticks. They keep their pace, however long the body takes.
        let mut ticks = Timer::interval(duration).take(3);
        while ticks.next().await.is_some() {
            println!("Tick after {} ms", start.elapsed().as_millis());
        }
    });
}
