//! A TLS client: what you type goes to the server, what the server says appears on the screen.
//!
//! Run with:
//!
//! ```text
//! cargo run --example tls-server
//! cargo run --example tls-client      # in another terminal; end with Ctrl-D
//! ```
//!
//! It connects to 127.0.0.1:7001, or to the address given as an argument.

#[path = "common/tls.rs"]
mod tls;

use std::net::TcpStream;

use smol::prelude::*;
use smol::{Async, Unblock, future, io};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:7001".into());

    smol::block_on(async {
        let stream = Async::<TcpStream>::connect(addr).await?;
        println!("Connected to {}", stream.get_ref().peer_addr()?);

        // The name is what the certificate must be made out to, not where the bytes go.
        let stream = tls::connector()?.connect("localhost", stream).await?;
        let (reader, mut writer) = io::split(stream);

        let stdin = Unblock::new(std::io::stdin());
        let mut stdout = Unblock::new(std::io::stdout());

        let send = async {
            io::copy(stdin, &mut writer).await?;
            writer.close().await
        };
        let receive = async {
            io::copy(reader, &mut stdout).await?;
            io::Result::Ok(())
        };
        future::try_zip(send, receive).await?;
        Ok(())
    })
}
