//! An HTTP client with hyper, on one thread: fetches pages, or posts one text to all of them, at
//! the same time.
//!
//! Run with:
//!
//! ```text
//! cargo run --example hyper-server
//! cargo run --example hyper-client                 # in another terminal
//! cargo run --example hyper-client -- --post 'to be echoed' http://127.0.0.1:8000/
//! ```

#[path = "common/hyper.rs"]
mod hyper_io;

use std::cell::Cell;
use std::error::Error;
use std::net::TcpStream;
use std::rc::Rc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Uri, header::HOST};
use hyper_io::HyperIo;
use smol::Async;

/// Fetches a page, or posts the text to it, and adds what was sent of the text to the counter.
///
/// The counter is an `Rc`, which must stay on its thread, and so must the body that counts, the
/// connection that sends it, and this future: that is what `spawn_local` is for.
async fn fetch(
    uri: Uri,
    text: Option<Bytes>,
    posted: Rc<Cell<usize>>,
) -> Result<String, Box<dyn Error>> {
    let host = uri.host().ok_or("no host in the address")?;
    if uri.scheme_str() != Some("http") {
        return Err("only http:// addresses, please".into());
    }
    let authority = uri.authority().ok_or("no host in the address")?;
    let request = if text.is_some() { Request::post(uri.path()) } else { Request::get(uri.path()) };
    let body = Full::new(text.unwrap_or_default()).map_frame(move |frame| {
        posted.set(posted.get() + frame.data_ref().map_or(0, Bytes::len));
        frame
    });
    let request = request.header(HOST, authority.as_str()).body(body)?;

    let stream = Async::<TcpStream>::connect((host, uri.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(HyperIo(stream)).await?;

    // The connection is a future of its own and moves the bytes; without it, the next line would
    // wait for ever. Its task ends with this function, when the handle is dropped.
    let _connection = smol::spawn_local(connection);
    let response = sender.send_request(request).await?;

    let status = response.status();
    let page = response.into_body().collect().await?.to_bytes();
    Ok(format!("{uri} answers {status}\n{}", String::from_utf8_lossy(&page)))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut text = None;
    if args.first().is_some_and(|arg| arg == "--post") {
        text = Some(Bytes::from(args.get(1).ok_or("--post what?")?.clone()));
        args.drain(..2);
    }
    if args.is_empty() {
        args.push("http://127.0.0.1:8000/".into());
    }

    smol::block_on(async {
        // Tasks of this thread: they take turns while the main future waits.
        let posted = Rc::default();
        let mut fetches = Vec::new();
        for uri in args {
            let fetch = fetch(uri.parse()?, text.clone(), Rc::clone(&posted));
            fetches.push(smol::spawn_local(fetch));
        }
        for page in fetches {
            println!("{}", page.await?);
        }
        println!("{} bytes posted", posted.get());
        Ok(())
    })
}
