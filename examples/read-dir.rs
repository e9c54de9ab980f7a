//! Lists a directory.
//!
//! Run with:
//!
//! ```text
//! cargo run --example read-dir -- examples
//! ```

use smol::prelude::*;
use smol::{Unblock, io};

fn main() -> io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or(".".into());

    smol::block_on(async {
        // Opening a directory may block, so it runs on the pool of blocking threads ...
        let entries = smol::unblock(move || std::fs::read_dir(path)).await?;

        // ... and so may each step of the iterator: `Unblock` makes a stream of it, a few steps
        // ahead of us.
        let mut entries = Unblock::new(entries);
        while let Some(entry) = entries.next().await {
            println!("{}", entry?.file_name().to_string_lossy());
        }
        Ok(())
    })
}
