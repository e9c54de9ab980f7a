//! How many reactors and threads a process has in which all of them are in use. A file of its own is
//! a process of its own.

#![cfg(target_os = "linux")]

mod common;

use common::within_a_minute;

#[test]
fn all_libraries_together_have_one_reactor_and_one_pool() -> one_runtime::Result<()> {
    let census = within_a_minute(one_runtime::all())?;
    print!("{census}");
    assert_eq!(census.reactors, 1, "{census}");
    // The thread of async-io's reactor, and those of the pool of blocking.
    for name in ["async-io", "blocking-"] {
        assert!(!census.threads.contains_key(name), "{census}");
    }
    Ok(())
}
