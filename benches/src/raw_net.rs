//! What a network row costs without a runtime: one thread with a level-triggered epoll loop for many connections, blocking
//! calls for one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::client::{self, HELLO, MESSAGE};
use crate::net::{PIECE, READ, Service};

/// Serves for ever.
pub fn serve(listener: &TcpListener, service: Service) {
    match service {
        Service::Echo => epoll_loop(listener, echo),
        Service::Http => epoll_loop(listener, http),
        Service::Source => {
            one_by_one(listener, |mut stream| while stream.write_all(&client::BULK).is_ok() {})
        }
        Service::Sink => one_by_one(listener, |mut stream| {
            let mut buf = vec![0; PIECE];
            let mut position = 0;
            while let Ok(read @ 1..) = stream.read(&mut buf) {
                assert_eq!(buf[0], client::bulk_byte(position));
                position += read;
            }
            stream.write_all(&(position as u64).to_le_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }),
    }
}

fn one_by_one(listener: &TcpListener, serve: impl Fn(TcpStream)) {
    listener.set_nonblocking(false).unwrap();
    loop {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        serve(stream);
    }
}

/// Blocking ping-pong, for a server with a single client.
pub fn ping_pong(listener: &TcpListener) {
    one_by_one(listener, |mut stream| while echo(&mut stream) {});
}

pub fn unix(listener: &UnixListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut buf = [0; READ];
    while let Ok(read @ 1..) = stream.read(&mut buf) {
        stream.write_all(&buf[..read]).unwrap();
    }
}

pub fn udp(socket: &UdpSocket) {
    let mut buf = [0; READ];
    loop {
        let (read, peer) = socket.recv_from(&mut buf).unwrap();
        socket.send_to(&buf[..read], peer).unwrap();
    }
}

/// Calls `readable` when a connection is, and closes it when that says so.
fn epoll_loop(listener: &TcpListener, readable: impl Fn(&mut TcpStream) -> bool) {
    listener.set_nonblocking(true).unwrap();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let watch = |fd: &dyn rustix::fd::AsFd| {
        let number = epoll::EventData::new_u64(fd.as_fd().as_raw_fd() as u64);
        epoll::add(&epoll, fd, number, epoll::EventFlags::IN).unwrap();
    };
    watch(listener);
    // By number of the descriptor.
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let number = event.data.u64() as usize;
            if number == listener.as_raw_fd() as usize {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    stream.set_nodelay(true).unwrap();
                    watch(&stream);
                    let number = stream.as_raw_fd() as usize;
                    if number >= streams.len() {
                        streams.resize_with(number + 1, || None);
                    }
                    streams[number] = Some(stream);
                }
            } else if let Some(stream) = &mut streams[number]
                && !readable(stream)
            {
                streams[number] = None;
            }
        }
    }
}

fn echo(stream: &mut TcpStream) -> bool {
    let mut buf = [0; READ];
    match stream.read(&mut buf) {
        Ok(0) => false,
        Ok(read) => stream.write_all(&buf[..read]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn http(stream: &mut TcpStream) -> bool {
    const HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n";
    let mut buf = [0; 8 * 1024];
    match stream.read(&mut buf) {
        Ok(read @ 1..) => {
            assert!(
                buf[..read].starts_with(b"GET / HTTP/1.1\r\n")
                    && buf[..read].ends_with(b"\r\n\r\n")
            );
            stream.write_all(&[HEAD, HELLO].concat()).is_ok()
        }
        _ => false,
    }
}

/// Both ends of each pair in one loop; `n` messages in all.
pub fn both_ends(listener: &TcpListener, pairs: usize, n: u64) -> Duration {
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(false).unwrap();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut ends = Vec::new();
    for _ in 0..pairs {
        let client = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [client, server] {
            stream.set_nodelay(true).unwrap();
            stream.set_nonblocking(true).unwrap();
            epoll::add(
                &epoll,
                &stream,
                epoll::EventData::new_u64(ends.len() as u64),
                epoll::EventFlags::IN,
            )
            .unwrap();
            ends.push(stream);
        }
    }
    let mut events = Vec::with_capacity(1024);
    let mut numbers = vec![0; pairs];
    let mut round_trips = |each: u64| {
        numbers.fill(1);
        for client in ends.iter_mut().step_by(2) {
            client.write_all(&client::message(1)).unwrap();
        }
        let mut finished = 0;
        while finished < pairs {
            events.clear();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            for event in &events {
                let end = event.data.u64() as usize;
                if end % 2 == 1 {
                    assert!(echo(&mut ends[end]));
                    continue;
                }
                let number = &mut numbers[end / 2];
                let mut received = [0; MESSAGE];
                ends[end].read_exact(&mut received).unwrap();
                assert_eq!(received, client::message(*number));
                *number += 1;
                if *number <= each {
                    ends[end].write_all(&client::message(*number)).unwrap();
                } else {
                    finished += 1;
                }
            }
        }
    };
    let each = n.div_ceil(pairs as u64);
    round_trips(each / 10 + 1);
    let start = Instant::now();
    round_trips(each);
    start.elapsed()
}
