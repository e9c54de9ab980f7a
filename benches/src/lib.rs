//! This runtime against its peers, in one table. The README of this folder says how to run it.

pub mod builds;
pub mod children;
pub mod client;
pub mod compare;
pub mod driver;
pub mod evidence;
pub mod files;
pub mod growth;
pub mod memory;
pub mod net;
pub mod picture;
pub mod pool;
pub mod raw_net;
pub mod row;
pub mod runtimes;
pub mod table;
pub mod tasks;
pub mod timers;

use row::Row;

/// The sections of the table.
pub const SECTIONS: &[(&str, &[Row])] = &[
    ("Tasks", tasks::ROWS),
    ("Timers", timers::ROWS),
    ("Blocking", pool::ROWS),
    ("Network", net::ROWS),
    ("Files", files::ROWS),
    ("Child processes", children::ROWS),
    ("Memory", memory::ROWS),
    ("Building", builds::ROWS),
];
/// Those of them that are held against `raw`.
pub const IO: &[&str] = &["Network", "Files", "Child processes"];

/// All rows, in the order of the table.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    SECTIONS.iter().flat_map(|(_, rows)| rows.iter())
}

/// The program: the driver, or one of the processes that it starts.
pub fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["child", row, runtime, n] => driver::child(row, runtime, n.parse().unwrap()),
        ["client", args @ ..] => client::run(args),
        args => driver::parent(args),
    }
}
