//! Waits for a line on standard input, but not for ever.
//!
//! Run with:
//!
//! ```text
//! cargo run --example timer-timeout
//! cargo run --example timer-timeout -- 500    # in milliseconds
//! ```

use std::time::Duration;

use smol::prelude::*;
use smol::{Unblock, io};

fn main() -> io::Result<()> {
    let millis = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(5000);

    smol::block_on(async {
        let mut stdin = io::BufReader::new(Unblock::new(std::io::stdin()));
        let mut line = String::new();

        println!("Type a line within {millis} ms:");
        // Whoever loses the race is dropped, and that is all there is to cancelling a future.
        let typed = smol::timeout(Duration::from_millis(millis), stdin.read_line(&mut line)).await;
        match typed {
            Ok(result) => println!("You typed {} bytes: {}", result?, line.trim_end()),
            // `?` would make an `io::Error` of it.
            Err(timed_out) => println!("Too slow: {timed_out}"),
        }
        Ok(())
    })
}
