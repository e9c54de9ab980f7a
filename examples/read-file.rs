//! Prints a file.
//!
//! Run with:
//!
//! ```text
//! cargo run --example read-file -- Cargo.toml
//! ```

use std::fs::File;

use smol::{Async, Unblock, io};

fn main() -> io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or("Cargo.toml".into());

    smol::block_on(async {
        // The kernel cannot tell when a file on a disk is "ready": each operation runs on a thread
        // that may wait.
        let file = Async::<File>::open(&path).await?;
        // Whatever else std can do with a file is one `with` away.
        let length = file.with(|file| file.metadata()).await?.len();
        eprintln!("{path}: {length} bytes");

        io::copy(file, &mut Unblock::new(std::io::stdout())).await?;
        Ok(())
    })
}
