//! Waits for Unix signals: SIGHUP "reloads", SIGINT and SIGTERM end the program.
//!
//! Run with:
//!
//! ```text
//! cargo run --example unix-signal         # then Ctrl-C, or kill -HUP from another terminal
//! ```

#[cfg(unix)]
fn main() -> smol::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::low_level::pipe;
    use smol::prelude::*;
    use smol::{Async, future, io};
    use std::os::unix::net::UnixStream;

    /// A stream that yields a byte whenever the signal arrives.
    fn signal(number: i32) -> io::Result<Async<UnixStream>> {
        // A signal may interrupt anything, so its handler may do next to nothing. Writing a byte is
        // allowed, and the other end of the pair is a socket like any other.
        let (ours, theirs) = UnixStream::pair()?;
        pipe::register(number, theirs)?;
        Async::new(ours)
    }

    smol::block_on(async {
        let mut hangup = signal(SIGHUP)?;
        let mut interrupt = signal(SIGINT)?;
        let mut terminate = signal(SIGTERM)?;
        println!("Process {} waits for signals...", std::process::id());

        loop {
            let hangup = async { hangup.read_exact(&mut [0]).await.map(|()| "SIGHUP") };
            let interrupt = async { interrupt.read_exact(&mut [0]).await.map(|()| "SIGINT") };
            let terminate = async { terminate.read_exact(&mut [0]).await.map(|()| "SIGTERM") };

            match future::or(hangup, future::or(interrupt, terminate)).await? {
                "SIGHUP" => println!("SIGHUP: reloading"),
                name => {
                    println!("{name}: done");
                    return Ok(());
                }
            }
        }
    })
}

#[cfg(not(unix))]
fn main() {
    println!("This example works only on Unix.");
}
