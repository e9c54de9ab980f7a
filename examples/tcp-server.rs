//! A TCP server that sends every byte back to where it came from.
//!
//! Run with:
//!
//! ```text
//! cargo run --example tcp-server
//! cargo run --example tcp-client      # in another terminal; or: nc 127.0.0.1 7000
//! ```
//!
//! It listens on 127.0.0.1:7000, or on the address given as an argument.

use std::net::{TcpListener, TcpStream};

use smol::{Async, io};

/// Copies what arrives on the stream back into it until the client has said all it wanted to.
async fn echo(stream: Async<TcpStream>) -> io::Result<()> {
    // `&Async<T>` reads and writes just like `Async<T>`, so one stream can be both ends of a copy.
    io::copy(&stream, &mut &stream).await?;
    Ok(())
}

fn main() -> io::Result<()> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:7000".into());

    smol::block_on(async {
        let listener = Async::<TcpListener>::bind(addr)?;
        println!("Listening on {}", listener.get_ref().local_addr()?);

        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    println!("Accepted client: {peer}");
                    // A task is cancelled when its handle is dropped: `detach` lets it run on its
                    // own.
                    smol::spawn(echo(stream)).detach();
                }
                // One client that failed to connect is no reason to stop serving the others.
                Err(error) => eprintln!("Cannot accept: {error}"),
            }
        }
    })
}
