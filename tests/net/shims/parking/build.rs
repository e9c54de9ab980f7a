#[path = "../copy.rs"]
mod copy;

fn main() {
    copy::copy("parking", "2.", &[], &[]);
}
