//! A TCP client: what you type goes to the server, what the server says appears on the screen.
//!
//! Run with:
//!
//! ```text
//! cargo run --example tcp-server
//! cargo run --example tcp-client      # in another terminal; end with Ctrl-D
//! ```
//!
//! It connects to 127.0.0.1:7000, or to the address given as an argument.

use std::net::TcpStream;

use smol::prelude::*;
use smol::{Async, Unblock, future, io};

fn main() -> io::Result<()> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:7000".into());

    smol::block_on(async {
        let stream = Async::<TcpStream>::connect(addr).await?;
        println!("Connected to {}", stream.get_ref().peer_addr()?);

        // Standard input and output block; `Unblock` moves their operations to a pool of threads
        // made for waiting.
        let stdin = Unblock::new(std::io::stdin());
        let mut stdout = Unblock::new(std::io::stdout());

        let send = async {
            let mut writer = &stream;
            io::copy(stdin, &mut writer).await?;
            writer.close().await // no more to come: the server reads an end of file
        };
        let receive = async {
            io::copy(&stream, &mut stdout).await?;
            io::Result::Ok(())
        };

        // Both at once, until the server has answered the last byte or one of them fails.
        future::try_zip(send, receive).await?;
        Ok(())
    })
}
