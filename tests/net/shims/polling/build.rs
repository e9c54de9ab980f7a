#[path = "../copy.rs"]
mod copy;

fn main() {
    copy::copy("polling", "3.", &["epoll", "os"], &[]);
}
