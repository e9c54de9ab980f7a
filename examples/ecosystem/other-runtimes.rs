//! A library made for tokio, here the HTTP client reqwest, used from our `block_on`.
//!
//! Run with:
//!
//! ```text
//! cargo run --example other-runtimes
//! cargo run --example other-runtimes -- http://127.0.0.1:8000/     # the hyper-server example, say
//! ```
//!
//! Without an address it fetches a page from a server of its own.

use std::error::Error;
use std::net::TcpListener;

use smol::prelude::*;
use smol::{Async, io};

/// Answers one request and ends.
async fn serve(listener: Async<TcpListener>) -> io::Result<()> {
    let (mut stream, _) = listener.accept().await?;
    let mut lines = io::BufReader::new(&stream).lines();
    while lines.next().await.transpose()?.unwrap_or_default() != "" {}

    let answer =
        "HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\nHello from smol!\n";
    stream.write_all(answer.as_bytes()).await
}

fn main() -> Result<(), Box<dyn Error>> {
    // reqwest's sockets and timers belong to tokio, so tokio must run somewhere: on one thread in
    // the background.
    let tokio =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;

    smol::block_on(async {
        // While this guard lives, code on this thread finds that runtime when it asks for one. Our
        // own `spawn`, `Timer` and `Async` do not ask: both runtimes work side by side.
        let _tokio = tokio.enter();

        let mut server = None;
        let url = match std::env::args().nth(1) {
            Some(url) => url,
            None => {
                let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
                let url = format!("http://{}/", listener.get_ref().local_addr()?);
                server = Some(smol::spawn(serve(listener)));
                url
            }
        };

        // A future is a future: tokio's wakers wake our `block_on`.
        let response = reqwest::get(&url).await?;
        println!("{url} answers {}", response.status());
        print!("{}", response.text().await?);

        if let Some(server) = server {
            server.await?;
        }
        Ok(())
    })
}
