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
    use smol::{Async, Unblock, future, io};
    use uds_windows::{UnixListener, UnixStream};

    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");

    smol::block_on(async {
        // std has no such sockets on Windows, the `uds_windows` crate has. `Async` takes whatever
        // is a socket.
        let listener = Async::new(UnixListener::bind(&path)?)?;
        println!("Listening on {:?}", listener.get_ref().local_addr()?);

        let server = async {
            let (stream, _) = listener.read_with(|listener| listener.accept()).await?;
            let mut message = String::new();
            // These streams cannot be read through a shared reference, so `Async` is not a reader
            // here; `Unblock` is one for anything that is `Read`.
            Unblock::new(stream).read_to_string(&mut message).await?;
            io::Result::Ok(message)
        };
        let client = async {
            // Connecting to a socket of this machine does not wait for long, but it is a blocking
            // call.
            let stream = smol::unblock(move || UnixStream::connect(path)).await?;
            let mut stream = Unblock::new(stream);
            stream.write_all(b"Hello through a Unix socket!").await?;
            stream.flush().await
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
