//! A WebSocket client: sends each line you type as a message and prints those that come back.
//!
//! Run with:
//!
//! ```text
//! cargo run --example websocket-server
//! cargo run --example websocket-client             # in another terminal; end with Ctrl-D
//! cargo run --example websocket-client -- wss://localhost:9001/
//! ```

#[path = "common/tls.rs"]
mod tls;

use std::error::Error;
use std::net::TcpStream;

use async_tungstenite::client_async;
use async_tungstenite::tungstenite::{Message, http::Uri};
use smol::prelude::*;
use smol::{Async, Unblock, io};

/// Shakes hands as a WebSocket client, then sends the lines of standard input and prints the
/// answers.
async fn talk<T>(uri: &Uri, stream: T) -> Result<(), Box<dyn Error>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut socket, response) = client_async(uri, stream).await?;
    println!("Connected: {}", response.status());

    let mut lines = io::BufReader::new(Unblock::new(std::io::stdin())).lines();
    while let Some(line) = lines.next().await {
        socket.send(Message::text(line?)).await?;
        match socket.next().await {
            Some(message) => println!("Received: {}", message?),
            None => return Err("the server has closed the connection".into()),
        }
    }

    // Say goodbye and wait until the server has said it too.
    socket.close(None).await?;
    while let Some(message) = socket.next().await {
        message?;
    }
    println!("Closed");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let uri = std::env::args().nth(1).unwrap_or("ws://127.0.0.1:9000/".into());
    let uri: Uri = uri.parse()?;
    let host = uri.host().ok_or("no host in the address")?;

    smol::block_on(async {
        match uri.scheme_str() {
            Some("ws") => {
                let stream = Async::<TcpStream>::connect((host, uri.port_u16().unwrap_or(80)));
                talk(&uri, stream.await?).await
            }
            Some("wss") => {
                let stream = Async::<TcpStream>::connect((host, uri.port_u16().unwrap_or(443)));
                talk(&uri, tls::connector()?.connect(host, stream.await?).await?).await
            }
            _ => Err("only ws:// and wss:// addresses, please".into()),
        }
    })
}
