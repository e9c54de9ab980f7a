//! polling with the simulated locks and the simulated kernel below it

#![allow(warnings, clippy::all)]

extern crate alloc;
extern crate sim as std;

include!(concat!(env!("OUT_DIR"), "/copy.rs"));
