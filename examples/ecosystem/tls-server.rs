//! A TLS server that sends every byte back to where it came from.
//!
//! Run with:
//!
//! ```text
//! cargo run --example tls-server
//! cargo run --example tls-client      # in another terminal
//! ```
//!
//! It listens on 127.0.0.1:7001, or on the address given as an argument.

#[path = "common/tls.rs"]
mod tls;

use std::net::{TcpListener, TcpStream};

use async_native_tls::TlsAcceptor;
use smol::prelude::*;
use smol::{Async, io};

async fn echo(acceptor: TlsAcceptor, stream: Async<TcpStream>) -> io::Result<()> {
    let stream = acceptor.accept(stream).await.map_err(io::Error::other)?;

    // Encryption keeps state for both directions in one place, so a TLS stream cannot be cloned:
    // `split` shares it.
    let (reader, mut writer) = io::split(stream);
    io::copy(reader, &mut writer).await?;
    writer.close().await // says goodbye: without it, the client cannot tell the end from a cut wire
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:7001".into());
    let acceptor = tls::acceptor()?;

    smol::block_on(async {
        let listener = Async::<TcpListener>::bind(addr)?;
        println!("Listening on {}", listener.get_ref().local_addr()?);

        loop {
            let (stream, peer) = listener.accept().await?;
            println!("Accepted client: {peer}");
            let acceptor = acceptor.clone();

            // The handshake is in the task too: a client that is slow to shake hands holds up
            // nobody else.
            smol::spawn(async move {
                if let Err(error) = echo(acceptor, stream).await {
                    eprintln!("Lost client {peer}: {error}");
                }
            })
            .detach();
        }
    })
}
