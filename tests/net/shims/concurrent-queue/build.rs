#[path = "../copy.rs"]
mod copy;

fn main() {
    copy::copy(
        "concurrent-queue",
        "2.",
        &["bounded", "single", "unbounded", "sync"],
        &[
            ("extern crate alloc;\n", ""),
            ("#[cfg(feature = \"std\")]\nextern crate std;\n", ""),
            ("pub(crate) use core::sync::atomic", "pub(crate) use sim::copies::atomic"),
        ],
    );
}
