//! A chat server: each line a client sends goes to all the others.
//!
//! Run with:
//!
//! ```text
//! cargo run --example chat-server
//! cargo run --example chat-client     # in two other terminals
//! ```
//!
//! It listens on 127.0.0.1:6000, or on the address given as an argument.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};

use async_channel::{Receiver, Sender, bounded};
use smol::prelude::*;
use smol::{Async, io};

/// What happens in the room.
enum Event {
    Join(SocketAddr, Async<TcpStream>),
    Leave(SocketAddr),
    Message(SocketAddr, String),
}

/// One task owns the list of clients, so no lock is needed: whoever wants something sends an event.
async fn room(events: Receiver<Event>) {
    let mut clients = HashMap::<SocketAddr, Async<TcpStream>>::new();

    while let Ok(event) = events.recv().await {
        let (sender, line) = match event {
            Event::Join(addr, stream) => {
                clients.insert(addr, stream);
                (addr, format!("{addr} has joined\n"))
            }
            Event::Leave(addr) => {
                clients.remove(&addr);
                (addr, format!("{addr} has left\n"))
            }
            Event::Message(addr, text) => (addr, format!("{addr} says: {text}\n")),
        };
        print!("{line}");

        for (addr, stream) in &mut clients {
            if *addr != sender {
                // A client that went away is removed by its own `Leave`. A program for the real
                // world would give each client a queue of its own, so that one who does not read
                // cannot hold up the room.
                stream.write_all(line.as_bytes()).await.ok();
            }
        }
    }
}

/// Turns the lines of one client into events.
async fn listen(addr: SocketAddr, stream: Async<TcpStream>, events: Sender<Event>) {
    // A clone is a second handle to the same socket: the room writes, this task reads.
    let mut lines = io::BufReader::new(stream.clone()).lines();

    events.send(Event::Join(addr, stream)).await.ok();
    while let Some(Ok(text)) = lines.next().await {
        events.send(Event::Message(addr, text)).await.ok();
    }
    events.send(Event::Leave(addr)).await.ok();
}

fn main() -> io::Result<()> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:6000".into());

    smol::block_on(async {
        let listener = Async::<TcpListener>::bind(addr)?;
        println!("Listening on {}", listener.get_ref().local_addr()?);

        // A bounded channel: who talks faster than the room can listen has to wait.
        let (sender, receiver) = bounded(100);
        smol::spawn(room(receiver)).detach();

        loop {
            match listener.accept().await {
                Ok((stream, addr)) => smol::spawn(listen(addr, stream, sender.clone())).detach(),
                Err(error) => eprintln!("Cannot accept: {error}"),
            }
        }
    })
}
