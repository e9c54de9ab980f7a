//! An HTTP server with async-h1, which speaks HTTP over any stream of futures-io: no adapter is
//! needed.
//!
//! Run with:
//!
//! ```text
//! cargo run --example async-h1-server
//! cargo run --example async-h1-client      # in another terminal
//! curl http://127.0.0.1:8010/              # or this
//! ```
//!
//! It listens on 127.0.0.1:8010, or on the address given as an argument.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use async_h1::server::{Encoder, decode};
use http_types::{Request, Response, StatusCode};
use smol::{Async, io};

async fn answer(request: Request) -> http_types::Result<Response> {
    println!("{} {}", request.method(), request.url());

    let mut response = Response::new(StatusCode::Ok);
    response.insert_header("Content-Type", "text/plain");
    response.set_body("Hello from smol and async-h1!\n");
    Ok(response)
}

/// Serves one client, request after request.
///
/// `async_h1::accept` is the same loop with a timer of async-io's, which is a reactor of its own.
/// Decoding and encoding by hand leaves the timeout to our timers.
async fn serve(stream: Async<TcpStream>) -> http_types::Result<()> {
    let idle = Duration::from_secs(60);
    while let Some((request, mut unread)) = smol::timeout(idle, decode(stream.clone())).await?? {
        let method = request.method();
        let response = answer(request).await?;
        io::copy(Encoder::new(response, method), &mut &stream).await?;
        // What the answer did not care to read of the request.
        io::copy(&mut unread, &mut io::sink()).await?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:8010".into());

    smol::block_on(async {
        let listener = Async::<TcpListener>::bind(addr)?;
        println!("Listening on http://{}", listener.get_ref().local_addr()?);

        loop {
            let (stream, _) = listener.accept().await?;
            smol::spawn(async {
                if let Err(error) = serve(stream).await {
                    eprintln!("Connection ended: {error}");
                }
            })
            .detach();
        }
    })
}
