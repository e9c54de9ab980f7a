//! Waits for Ctrl-C, on every platform.
//!
//! Run with:
//!
//! ```text
//! cargo run --example ctrl-c
//! ```

fn main() -> Result<(), ctrlc::Error> {
    // The handler runs on a thread of the `ctrlc` crate. A channel carries the news to the task
    // that awaits it.
    let (sender, receiver) = async_channel::bounded(1);
    ctrlc::set_handler(move || {
        sender.try_send(()).ok(); // full: one Ctrl-C is waiting already, and one is enough
    })?;

    smol::block_on(async {
        println!("Waiting for Ctrl-C...");
        receiver.recv().await.ok();
        println!("Done!");
    });
    Ok(())
}
