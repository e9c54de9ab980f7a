//! A web crawler: follows all links of a site, several pages at a time, and visits each page once.
//!
//! Run with:
//!
//! ```text
//! cargo run --example web-crawler                     # crawls a site that it serves itself
//! cargo run --example simple-server
//! cargo run --example web-crawler -- 127.0.0.1:8001   # in another terminal
//! ```

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;

use async_channel::{Receiver, Sender, bounded};
use smol::prelude::*;
use smol::{Async, Scope, io};

struct Crawl {
    site: SocketAddr,
    /// The pages that are known so far.
    pages: RefCell<BTreeSet<String>>,
    /// Room for a few tokens: whoever fetches puts one in first and takes one out afterwards.
    tokens: (Sender<()>, Receiver<()>),
}

/// A visit starts others like it: its type needs a name, and a box in which it ends.
type Visit<'env> = Pin<Box<dyn Future<Output = ()> + 'env>>;

impl Crawl {
    async fn fetch(&self, path: &str) -> io::Result<String> {
        let mut stream = Async::<TcpStream>::connect(self.site).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.site);
        stream.write_all(request.as_bytes()).await?;

        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        Ok(page)
    }

    /// Fetches a page and visits each new one that it links to. All these visits are children of
    /// one scope: they may borrow the crawl, and the scope ends when the last of them has ended.
    fn visit<'env>(&'env self, scope: Scope<'env>, path: String) -> Visit<'env> {
        Box::pin(async move {
            self.tokens.0.send(()).await.ok();
            let result = self.fetch(&path).await;
            self.tokens.1.recv().await.ok();

            let page = result.unwrap_or_else(|error| error.to_string());
            println!("{path}: {} bytes", page.len());
            for link in page.split('"').filter(|quoted| quoted.starts_with('/')) {
                if self.pages.borrow_mut().insert(link.into()) {
                    // The handle may go: the scope waits for the child all the same.
                    drop(scope.spawn(self.visit(scope.clone(), link.into())));
                }
            }
        })
    }
}

/// Serves a site of 100 pages, each of which links to two others.
async fn serve(listener: Async<TcpListener>) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        smol::spawn(async move {
            let mut lines = io::BufReader::new(&stream).lines();
            let request = lines.next().await.transpose()?.unwrap_or_default();
            while lines.next().await.transpose()?.unwrap_or_default() != "" {} // headers

            let path = request.split(' ').nth(1).unwrap_or("/");
            let n = u32::from(path.trim_matches('/').parse::<u8>().unwrap_or(0));
            let link = |n| format!("<a href=\"/{0}\">Page {0}</a>\n", n % 100);
            let page = link(2 * n + 1) + &link(2 * n + 2);
            let answer = format!("HTTP/1.1 200 OK\r\n\r\n{page}");
            stream.write_all(answer.as_bytes()).await
        })
        .detach();
    }
}

fn main() -> io::Result<()> {
    smol::block_on(async {
        let site = match std::env::args().nth(1) {
            Some(addr) => smol::resolve(addr).await?[0],
            None => {
                let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
                let addr = listener.get_ref().local_addr()?;
                smol::spawn(serve(listener)).detach();
                addr
            }
        };
        println!("Crawling http://{site}");

        let pages = RefCell::new(BTreeSet::from(["/".to_string()]));
        let crawl = Crawl { site, pages, tokens: bounded(8) };
        smol::scope(async |scope| crawl.visit(scope, "/".into()).await).await;
        println!("{} pages", crawl.pages.borrow().len());
        Ok(())
    })
}
