//! One task, one steal, one timer, one byte, one blocking job: the runtime tells their lives itself, where it happens.
//!
//! Run with:
//!
//! ```text
//! cargo tour        # an alias in .cargo/config.toml: this example, compiled with `--cfg tour`
//! ```
//!
//! The number in front of each line is a stop of the tour: search `src/lib.rs` for `tour!(1`, and so on.

use std::{future::pending, io, thread, time::Duration};

use smol::{Async, Timer, prelude::*};

fn say(what: &str) {
    eprintln!("\n--- {what}");
}

fn main() -> io::Result<()> {
    if !cfg!(tour) {
        println!("This is the quiet build. `cargo tour` prints what happens inside.");
    }
    smol::block_on(async {
        say("a task is spawned, and awaited");
        smol::spawn(async {}).await;

        say("a task spawns two others and keeps its thread busy: they are stolen from it");
        let robbed = smol::spawn(async {
            let tasks = [smol::spawn(async {}), smol::spawn(async {})];
            thread::sleep(Duration::from_millis(20));
            tasks
        });
        for task in robbed.await {
            task.await;
        }

        say("a timer of 20 ms");
        Timer::after(Duration::from_millis(20)).await;

        say("a byte arrives 20 ms after somebody began to wait for it");
        let listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0))?;
        let addr = listener.get_ref().local_addr()?;
        let mut client = Async::<std::net::TcpStream>::connect(addr).await?;
        let (mut server, _) = listener.accept().await?;
        let reader = smol::spawn(async move { server.read(&mut [0]).await });
        Timer::after(Duration::from_millis(20)).await;
        client.write_all(b"!").await?;
        reader.await?;

        say("something blocks, where it may");
        smol::unblock(|| thread::sleep(Duration::from_millis(1))).await;

        say("a task is cancelled");
        smol::spawn(pending::<()>()).cancel().await;
        Ok(())
    })
}
