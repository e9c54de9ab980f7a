//! Copies standard input to standard output.
//!
//! Run with:
//!
//! ```text
//! cargo run --example stdin-to-stdout         # end with Ctrl-D
//! ```

use smol::{Unblock, io};

fn main() -> io::Result<()> {
    smol::block_on(async {
        // Reading from a terminal blocks a thread until somebody types. `Unblock` has threads for
        // that.
        let stdin = Unblock::new(std::io::stdin());
        let mut stdout = Unblock::new(std::io::stdout());

        let bytes = io::copy(stdin, &mut stdout).await?;
        eprintln!("{bytes} bytes copied");
        Ok(())
    })
}
