//! The environment, in which a scenario can set variables for itself.

pub use std::env::*;

use std::cell::RefCell;

thread_local! {
    static SET: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Sets a variable for this run.
pub fn set(name: &str, value: &str) {
    SET.with_borrow_mut(|set| set.push((name.into(), value.into())));
}

/// Only what the scenario has set: nothing from outside may change what a seed does.
pub fn var(name: &str) -> Result<String, VarError> {
    SET.with_borrow(|set| {
        let found = set.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).ok_or(VarError::NotPresent)
    })
}

/// The same.
pub fn var_os(name: &str) -> Option<std::ffi::OsString> {
    var(name).ok().map(Into::into)
}
