//! Runs a program, which shares our terminal, and tells how it ended.
//!
//! Run with:
//!
//! ```text
//! cargo run --example process-run -- cargo --version
//! ```

use std::process::{Child, Command};

use smol::{Async, io};

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut command = Command::new(args.next().unwrap_or("cargo".into()));
    match args.next() {
        Some(first) => command.arg(first).args(args),
        None => command.arg("--version"),
    };

    smol::block_on(async {
        let child = Async::<Child>::spawn(&mut command)?;
        println!("Started process {}", child.id());

        // Nothing is blocked meanwhile: other tasks would go on. Dropping `child` instead would not
        // kill it.
        let status = child.status().await?;
        println!("Ended with {status}");
        Ok(())
    })
}
