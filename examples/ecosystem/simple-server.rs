//! HTTP and HTTPS servers by hand: a request is some lines of text, and so is the answer.
//!
//! Run with:
//!
//! ```text
//! cargo run --example simple-server
//! cargo run --example simple-client -- https://localhost:8002/     # in another terminal
//! curl --cacert examples/common/certificate.pem https://localhost:8002/
//! ```
//!
//! It listens on 127.0.0.1:8001 and, for HTTPS, on 127.0.0.1:8002, or on the two addresses given as
//! arguments.

#[path = "common/tls.rs"]
mod tls;

use std::net::{TcpListener, TcpStream};

use async_native_tls::TlsAcceptor;
use smol::prelude::*;
use smol::{Async, future, io};

/// Reads one request, answers it, and closes: the simplest thing that every browser understands.
async fn serve<T: AsyncRead + AsyncWrite + Unpin>(stream: T) -> io::Result<()> {
    let mut stream = io::BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?; // "GET /path HTTP/1.1"

    // The headers end with an empty line. Leaving them unread would make closing the socket an
    // error for the client.
    let mut header = String::new();
    while stream.read_line(&mut header).await? > 2 {
        header.clear();
    }

    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let (status, body) = match path {
        "/" => ("200 OK", "<p>Hello from smol! <a href=\"/about\">What is this?</a></p>\n"),
        "/about" => ("200 OK", "<p>A server by hand. <a href=\"/\">Home</a></p>\n"),
        _ => ("404 Not Found", "<p>There is no such page.</p>\n"),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    // What is read is buffered, what is written is not: `get_mut` is the stream itself.
    stream.get_mut().write_all(answer.as_bytes()).await?;
    stream.get_mut().close().await
}

/// Serves one client, through TLS if there is an acceptor.
async fn client(tls: Option<TlsAcceptor>, stream: Async<TcpStream>) {
    let result = match tls {
        None => serve(stream).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => serve(stream).await,
            Err(error) => Err(io::Error::other(error)),
        },
    };
    if let Err(error) = result {
        eprintln!("Connection ended: {error}");
    }
}

/// Listens for ever.
async fn listen(listener: Async<TcpListener>, tls: Option<TlsAcceptor>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        smol::spawn(client(tls.clone(), stream)).detach();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let http_addr = args.next().unwrap_or("127.0.0.1:8001".into());
    let https_addr = args.next().unwrap_or("127.0.0.1:8002".into());
    let acceptor = tls::acceptor()?;

    smol::block_on(async {
        let http = Async::<TcpListener>::bind(http_addr)?;
        let https = Async::<TcpListener>::bind(https_addr)?;
        println!("Listening on http://{}", http.get_ref().local_addr()?);
        println!("Listening on https://{}", https.get_ref().local_addr()?);

        // Both at once. Neither ends but by an error, and that ends the other.
        future::try_zip(listen(http, None), listen(https, Some(acceptor))).await?;
        Ok(())
    })
}
