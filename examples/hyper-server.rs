//! An HTTP server with hyper: says hello to a GET and echoes the body of a POST.
//!
//! Run with:
//!
//! ```text
//! cargo run --release --example hyper-server
//! curl http://127.0.0.1:8000/                  # in another terminal; or open it in a browser
//! curl -d 'to be echoed' http://127.0.0.1:8000/
//! wrk -t1 -c64 -d10 http://127.0.0.1:8000/     # how fast is it?
//! ```
//!
//! It listens on 127.0.0.1:8000, or on the address given as an argument.

#[path = "common/hyper.rs"]
mod hyper_io;

use std::convert::Infallible;
use std::net::{TcpListener, TcpStream};

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::{Method, Request, Response, StatusCode, service::service_fn};
use hyper_io::HyperIo;
use smol::{Async, future, io};

/// Either a text that is at hand, or the body of the request, which flows back piece by piece as it
/// arrives.
type Body = Either<Full<Bytes>, Incoming>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let text = |text| Either::Left(Full::new(Bytes::from_static(text)));
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => Response::new(text(b"Hello from smol!\n")),
        Method::POST => Response::new(Either::Right(request.into_body())),
        _ => {
            let mut response = Response::new(text(b"Only GET, HEAD and POST, please.\n"));
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response
        }
    };
    let text_plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text_plain);
    Ok(response)
}

/// Serves one client, request after request, until it closes the connection.
async fn serve(stream: Async<TcpStream>) {
    // Small answers should leave at once: without this the kernel may wait for more to send along.
    stream.get_ref().set_nodelay(true).ok();

    // An error here is a client that went away or did not speak HTTP. hyper has told it so; it is
    // no news to us.
    http1::Builder::new().serve_connection(HyperIo(stream), service_fn(answer)).await.ok();
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:8000".into());

    // Ctrl-C closes this channel; the main future, waiting on the other end, notices.
    let (sender, stopped) = async_channel::bounded::<()>(1);
    ctrlc::set_handler(move || {
        sender.close();
    })?;

    smol::block_on(async {
        let listener = Async::<TcpListener>::bind(addr)?;
        let addr = listener.get_ref().local_addr()?;
        println!("Listening on http://{addr}");
        println!("Try `curl http://{addr}/` in another terminal. Stop with Ctrl-C.");

        let accept = async {
            loop {
                match listener.accept().await {
                    // A task for each connection, spread over all processors.
                    Ok((stream, _)) => smol::spawn(serve(stream)).detach(),
                    // Too many connections, say. `accept` has waited a little, so this does not
                    // spin.
                    Err(error) => eprintln!("Cannot accept: {error}"),
                }
            }
        };
        let ctrl_c = async {
            stopped.recv().await.ok();
            println!("Stopped.");
        };
        future::or(accept, ctrl_c).await;
        io::Result::Ok(())
    })?;
    Ok(())
}
