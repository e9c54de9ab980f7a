#[path = "../copy.rs"]
mod copy;

fn main() {
    copy::copy(
        "async-task",
        "4.",
        &["header", "raw", "runnable", "state", "task", "utils"],
        &[
            ("extern crate alloc;\n", ""),
            ("#[cfg(feature = \"std\")]\nextern crate std;\n", ""),
            ("core::sync::atomic", "sim::copies::atomic"),
        ],
    );
}
