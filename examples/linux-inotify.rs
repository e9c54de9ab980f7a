//! Watches a directory and tells which files come, go and change.
//!
//! Run with:
//!
//! ```text
//! cargo run --example linux-inotify -- /tmp       # then touch a file there
//! ```

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> smol::io::Result<()> {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use smol::{Async, io};
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;

    /// Reads all events of one `read`, and waits if there are none.
    async fn events(inotify: &Async<OwnedFd>) -> io::Result<Vec<(ReadFlags, String)>> {
        let mut buf = [MaybeUninit::uninit(); 4096];
        // `read_with` runs the operation; if it says "would block", it waits for the kernel and
        // runs it again.
        let read = |fd: &OwnedFd| {
            let mut reader = Reader::new(fd, &mut buf);
            let mut events = Vec::new();
            loop {
                let event = reader.next()?;
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                events.push((event.events(), name.unwrap_or_default()));
                if reader.is_buffer_empty() {
                    return Ok(events);
                }
            }
        };
        inotify.read_with(read).await
    }

    let path = std::env::args().nth(1).unwrap_or(".".into());

    smol::block_on(async {
        // Any descriptor that the kernel can poll is at home in an `Async`.
        let inotify = Async::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?)?;
        let interest =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MODIFY | WatchFlags::MOVE;
        inotify::add_watch(&inotify, path.as_str(), interest)?;
        println!("Watching {path}");

        loop {
            for (kind, name) in events(&inotify).await? {
                println!("{name}: {kind:?}");
            }
        }
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() {
    println!("This example works only on Linux.");
}
