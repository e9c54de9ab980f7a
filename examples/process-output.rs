//! Runs a program and collects all that it prints.
//!
//! Run with:
//!
//! ```text
//! cargo run --example process-output -- cargo --version
//! ```

use std::process::{Child, Command, Stdio};

use smol::{Async, io};

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut command = Command::new(args.next().unwrap_or("cargo".into()));
    match args.next() {
        Some(first) => command.arg(first).args(args),
        None => command.arg("--version"),
    };
    // Only what is a pipe can be collected; anything else would go straight to our terminal.
    command.stdout(Stdio::piped()).stderr(Stdio::piped());

    smol::block_on(async {
        let child = Async::<Child>::spawn(&mut command)?;
        let output = child.output().await?;

        println!("Ended with {}", output.status);
        println!(
            "{} bytes of output:\n{}",
            output.stdout.len(),
            String::from_utf8_lossy(&output.stdout)
        );
        println!(
            "{} bytes of errors:\n{}",
            output.stderr.len(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })
}
