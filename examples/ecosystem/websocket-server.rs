//! A WebSocket server, plain and over TLS, that sends every message back.
//!
//! Run with:
//!
//! ```text
//! cargo run --example websocket-server
//! cargo run --example websocket-client             # in another terminal
//! cargo run --example websocket-client -- wss://localhost:9001/
//! ```
//!
//! It listens on 127.0.0.1:9000 and, for TLS, on 127.0.0.1:9001, or on the two addresses given as
//! arguments.

#[path = "common/tls.rs"]
mod tls;

use std::error::Error;
use std::net::{SocketAddr, TcpListener, TcpStream};

use async_native_tls::TlsAcceptor;
use async_tungstenite::accept_async;
use async_tungstenite::tungstenite::Error as WsError;
use smol::prelude::*;
use smol::{Async, future, io};

/// Shakes hands as a WebSocket server, then echoes until the client says goodbye.
async fn echo<T: AsyncRead + AsyncWrite + Unpin>(stream: T) -> Result<(), WsError> {
    let mut socket = accept_async(stream).await?;

    // Pings and the closing handshake are answered inside while we wait for the next message.
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// Serves one client, through TLS if there is an acceptor.
async fn client(tls: Option<TlsAcceptor>, stream: Async<TcpStream>, peer: SocketAddr) {
    println!("Accepted client: {peer}");
    let result: Result<(), Box<dyn Error + Send + Sync>> = async {
        match tls {
            None => echo(stream).await?,
            Some(tls) => echo(tls.accept(stream).await?).await?,
        }
        Ok(())
    }
    .await;
    match result {
        Ok(()) => println!("Client {peer} has left"),
        Err(error) => eprintln!("Lost client {peer}: {error}"),
    }
}

/// Listens for ever.
async fn listen(listener: Async<TcpListener>, tls: Option<TlsAcceptor>) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        smol::spawn(client(tls.clone(), stream, peer)).detach();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let ws_addr = args.next().unwrap_or("127.0.0.1:9000".into());
    let wss_addr = args.next().unwrap_or("127.0.0.1:9001".into());
    let acceptor = tls::acceptor()?;

    smol::block_on(async {
        let ws = Async::<TcpListener>::bind(ws_addr)?;
        let wss = Async::<TcpListener>::bind(wss_addr)?;
        println!("Listening on ws://{}", ws.get_ref().local_addr()?);
        println!("Listening on wss://{}", wss.get_ref().local_addr()?);

        future::try_zip(listen(ws, None), listen(wss, Some(acceptor))).await?;
        Ok(())
    })
}
