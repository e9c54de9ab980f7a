//! A chat client: sends the lines you type and prints those of the others.
//!
//! Run with:
//!
//! ```text
//! cargo run --example chat-server
//! cargo run --example chat-client     # in two other terminals; end with Ctrl-D
//! ```
//!
//! It connects to 127.0.0.1:6000, or to the address given as an argument.

use std::net::TcpStream;

use smol::{Async, Unblock, future, io};

fn main() -> io::Result<()> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:6000".into());

    smol::block_on(async {
        let stream = Async::<TcpStream>::connect(addr).await?;
        println!("Connected to {}", stream.get_ref().peer_addr()?);
        println!("My nickname: {}", stream.get_ref().local_addr()?);

        let stdin = Unblock::new(std::io::stdin());
        let mut stdout = Unblock::new(std::io::stdout());

        // Whichever ends first ends the program: you, with Ctrl-D, or the server.
        future::or(
            async { io::copy(stdin, &mut &stream).await.map(|_| println!("Quit!")) },
            async { io::copy(&stream, &mut stdout).await.map(|_| println!("Server gone!")) },
        )
        .await
    })
}
