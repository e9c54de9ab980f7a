//! Unix sockets on Windows: a server and a client in one program say hello to each other.
//!
//! Run with:
//!
//! ```text
//! cargo run --example windows-uds
//! ```

#[cfg(windows)]
fn main() -> smol::io::Result<()> {
    use smol::prelude::*;
    use smol::{Async, future, io};
    use uds_windows::{UnixListener, UnixStream};

    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");

    smol::block_on(async {
        // std has no such sockets on Windows; the `uds_windows` crate has.
        let listener = UnixListener::bind(&path)?;
        println!("Listening on {:?}", listener.local_addr()?);

        let server = async {
            // This listener does not show its socket (`AsSocket`), so it waits on the blocking pool.
            let (stream, _) = smol::unblock(move || listener.accept()).await?;
            // The stream does, and `Async` takes whatever is a socket.
            let mut stream = Async::new(stream)?;
            let mut message = String::new();
            stream.read_to_string(&mut message).await?;
            io::Result::Ok(message)
        };
        let client = async {
            let stream = smol::unblock(move || UnixStream::connect(path)).await?;
            let mut stream = Async::new(stream)?;
            stream.write_all(b"Hello through a Unix socket!").await
            // Dropping the stream closes it, and the server reads an end of file.
        };

        let (message, ()) = future::try_zip(server, client).await?;
        println!("{message}");
        Ok(())
    })
}

#[cfg(not(windows))]
fn main() {
    println!("This example works only on Windows. On Unix, see `Async<UnixStream>`.");
}
