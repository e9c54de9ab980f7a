//! async-task with the simulated atomics and threads

#![allow(warnings, clippy::all)]

extern crate alloc;
extern crate sim as std;

include!(concat!(env!("OUT_DIR"), "/copy.rs"));
