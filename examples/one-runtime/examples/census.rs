//! Uses zbus, quinn, async-net, async-process, async-fs, async-std and smol at once, and prints
//! what threads and how many reactors the process has meanwhile (on Linux).
//!
//! Run with: `cargo run --example census`

fn main() -> one_runtime::Result<()> {
    print!("{}", smol::block_on(one_runtime::all())?);
    Ok(())
}
