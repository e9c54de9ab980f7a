//! Work for the processors and work that waits: spreads both over threads and awaits the results.
//!
//! Run with:
//!
//! ```text
//! cargo run --release --example thread-pool
//! SMOL_THREADS=1 cargo run --release --example thread-pool
//! ```

use std::thread;
use std::time::{Duration, Instant};

/// Keeps a processor busy.
fn count_primes(below: u32) -> usize {
    (2..below).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count()
}

fn main() {
    smol::block_on(async {
        // `spawn` is for tasks that compute or await. There are as many workers as processors.
        let start = Instant::now();
        let tasks: Vec<_> =
            (1..=8).map(|i| smol::spawn(async move { count_primes(i * 20_000) })).collect();
        for task in tasks {
            print!("{} ", task.await);
        }
        println!("primes, in {} ms", start.elapsed().as_millis());

        // `unblock` is for calls that block. It has threads for hundreds of them: all these sleep
        // at the same time.
        let start = Instant::now();
        let naps: Vec<_> =
            (0..50).map(|_| smol::unblock(|| thread::sleep(Duration::from_millis(100)))).collect();
        for nap in naps {
            nap.await;
        }
        println!("50 naps of 100 ms in {} ms", start.elapsed().as_millis());
    });
}
