//! An HTTP client with async-h1.
//!
//! Run with:
//!
//! ```text
//! cargo run --example async-h1-server
//! cargo run --example async-h1-client          # in another terminal
//! ```
//!
//! It fetches http://127.0.0.1:8010/, or the address given as an argument.

use std::net::TcpStream;

use http_types::{Method, Request, Url};
use smol::Async;

fn main() -> http_types::Result<()> {
    let url = std::env::args().nth(1).unwrap_or("http://127.0.0.1:8010/".into());
    let url = Url::parse(&url)?;

    smol::block_on(async {
        let host = url.host_str().expect("the address has no host").to_owned();
        let port = url.port_or_known_default().unwrap_or(80);

        let stream = Async::<TcpStream>::connect((host, port)).await?;
        let mut response = async_h1::connect(stream, Request::new(Method::Get, url)).await?;

        println!("{}", response.status());
        print!("{}", response.body_string().await?);
        Ok(())
    })
}
