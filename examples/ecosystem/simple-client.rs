//! HTTP and HTTPS clients by hand: sends a request of three lines and prints all that comes back.
//!
//! Run with:
//!
//! ```text
//! cargo run --example simple-server
//! cargo run --example simple-client                                # in another terminal
//! cargo run --example simple-client -- https://localhost:8002/about
//! cargo run --example simple-client -- https://www.rust-lang.org/
//! ```

#[path = "common/tls.rs"]
mod tls;

use std::error::Error;
use std::net::TcpStream;

use smol::prelude::*;
use smol::{Async, Unblock, io};

/// Takes "https://host:port/path" apart. A real program would use the `url` crate.
fn parse(url: &str) -> Option<(bool, &str, u16, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let secure = match scheme {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, if secure { 443 } else { 80 }),
    };
    Some((secure, host, port, format!("/{path}")))
}

/// Says what it wants, then copies the answer to standard output.
async fn get<T>(mut stream: T, host: &str, path: &str) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;

    io::copy(stream, &mut Unblock::new(std::io::stdout())).await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).unwrap_or("http://127.0.0.1:8001/".into());
    let (secure, host, port, path) = parse(&url).ok_or("not an http:// or https:// address")?;

    smol::block_on(async {
        // A name is resolved on the pool; if it has several addresses, they are tried until one
        // answers.
        let stream = Async::<TcpStream>::connect((host, port)).await?;
        if secure {
            let stream = tls::connector()?.connect(host, stream).await?;
            get(stream, host, &path).await?;
        } else {
            get(stream, host, &path).await?;
        }
        Ok(())
    })
}
