//! The client of all servers: the same program for every runtime, as light as can be, in a process of its own.
//!
//! `smol-bench client <kind> <address> <connections> <n>` does `n` operations, in five batches, and prints the nanoseconds
//! that they take at the pace of the quickest. What the
//! server answers is checked, and a server that stays silent for ten seconds is an error.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes in a message.
pub const MESSAGE: usize = 64;
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
pub const HELLO: &[u8] = b"Hello, World!";
pub const MIB: usize = 1 << 20;

const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may wait for their `accept`.
const UNACCEPTED: usize = 256;

/// The program.
pub fn run(args: &[&str]) {
    let [kind, address, connections, n] = *args else {
        panic!("a client wants: <kind> <address> <connections> <n>");
    };
    let connections: usize = connections.parse().expect("a number of connections");
    let n: u64 = n.parse().expect("a number of operations");
    let elapsed = match kind {
        "tcp" => ping_pong(n, tcp(address)),
        "unix" => ping_pong(n, unix(address)),
        "udp" => ping_pong(n, udp(address)),
        "echo" => many::<Echo>(address, connections, n),
        "http" => many::<Http>(address, connections, n),
        "churn" => churn(address, n),
        "receive" => receive(address, n),
        "send" => send(address, n),
        "idle" => return idle(address, connections),
        _ => panic!("there is no client for {kind}"),
    };
    println!("{}", elapsed.as_nanos());
}

/// As many descriptors as this process may have, and how many that is.
pub fn raise_descriptors() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, raised).expect("to raise the soft limit of descriptors");
    maximum.unwrap_or(u64::MAX)
}

/// The quickest of five batches, as if all `n` operations had been like it.
fn quickest(n: u64, mut batch: impl FnMut(u64) -> Duration) -> Duration {
    let size = n.div_ceil(5);
    let times = (0..5).map(|_| batch(size));
    times.min().unwrap().mul_f64(n as f64 / size as f64)
}

/// A byte of the bulk data, by its position.
pub fn bulk_byte(position: usize) -> u8 {
    (position % MIB % 251) as u8
}

/// The bulk data: this, again and again.
pub static BULK: LazyLock<Vec<u8>> = LazyLock::new(|| (0..MIB).map(bulk_byte).collect());

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("to connect");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Closes without leaving the address behind for a minute (TIME_WAIT), which thousands of connections would pile up.
fn abort(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

/// Writes `sent`, and reads as many bytes into `received`.
fn stream_exchange(mut stream: impl Read + Write) -> impl FnMut(&[u8], &mut [u8]) {
    move |sent, received| {
        stream.write_all(sent).unwrap();
        stream.read_exact(received).expect("an answer in time");
    }
}

fn tcp(address: &str) -> impl FnMut(&[u8], &mut [u8]) {
    stream_exchange(connect(address))
}

fn unix(path: &str) -> impl FnMut(&[u8], &mut [u8]) {
    let stream = UnixStream::connect(path).expect("to connect");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream_exchange(stream)
}

fn udp(address: &str) -> impl FnMut(&[u8], &mut [u8]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    move |sent, received| {
        socket.send(sent).unwrap();
        assert_eq!(socket.recv(received).expect("an answer in time"), sent.len());
    }
}

/// One message there and back, `n` times.
fn ping_pong(n: u64, mut exchange: impl FnMut(&[u8], &mut [u8])) -> Duration {
    let mut received = [0; MESSAGE];
    let mut round_trips = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let sent = message(number);
            exchange(&sent, &mut received);
            assert_eq!(sent, received);
        }
    };
    round_trips(0..n / 10 + 10);
    quickest(n, |n| {
        let start = Instant::now();
        round_trips(0..n);
        start.elapsed()
    })
}

/// The message of this number.
pub fn message(number: u64) -> [u8; MESSAGE] {
    let mut message = [b'm'; MESSAGE];
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

/// What is asked and answered on each of many connections.
trait Dialogue: Default {
    fn ask(&mut self, stream: &mut TcpStream);
    /// Whether the answer is complete, with these bytes as well.
    fn answered(&mut self, bytes: &[u8]) -> bool;
}

#[derive(Default)]
struct Echo {
    number: u64,
    received: Vec<u8>,
}

impl Dialogue for Echo {
    fn ask(&mut self, stream: &mut TcpStream) {
        self.number += 1;
        stream.write_all(&message(self.number)).unwrap();
    }
    fn answered(&mut self, bytes: &[u8]) -> bool {
        self.received.extend_from_slice(bytes);
        if self.received.len() < MESSAGE {
            return false;
        }
        assert_eq!(self.received, message(self.number));
        self.received.clear();
        true
    }
}

#[derive(Default)]
struct Http {
    received: Vec<u8>,
}

impl Dialogue for Http {
    fn ask(&mut self, stream: &mut TcpStream) {
        stream.write_all(REQUEST).unwrap();
    }
    fn answered(&mut self, bytes: &[u8]) -> bool {
        self.received.extend_from_slice(bytes);
        let Some(head) =
            self.received.strip_suffix(HELLO).and_then(|head| head.strip_suffix(b"\r\n\r\n"))
        else {
            return false;
        };
        assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", head.escape_ascii());
        assert!(!head.windows(4).any(|bytes| bytes == b"\r\n\r\n"), "two answers to one request");
        self.received.clear();
        true
    }
}

/// One question is under way on each of the connections, until `n` have been answered.
fn many<D: Dialogue>(address: &str, connections: usize, n: u64) -> Duration {
    raise_descriptors();
    let mut all = open::<D>(address, connections);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (number, (stream, _)) in all.iter().enumerate() {
        stream.set_nonblocking(true).unwrap();
        epoll::add(&epoll, stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)
            .unwrap();
    }
    let mut buf = [0; 1024];
    let mut events = Vec::with_capacity(1024);
    let mut round_trips = |n: u64| {
        for (stream, dialogue) in &mut all {
            dialogue.ask(stream);
        }
        let (mut asked, mut answered) = (connections as u64, 0);
        while answered < asked {
            events.clear();
            let patience = PATIENCE.try_into().unwrap();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&patience))
                .unwrap();
            assert!(!events.is_empty(), "the server has fallen silent");
            for event in &events {
                let (stream, dialogue) = &mut all[event.data.u64() as usize];
                let read = stream.read(&mut buf).unwrap();
                assert!(read > 0, "the server has hung up");
                if dialogue.answered(&buf[..read]) {
                    answered += 1;
                    if asked < n {
                        asked += 1;
                        dialogue.ask(stream);
                    }
                }
            }
        }
        asked
    };
    round_trips(n / 10);
    let elapsed = quickest(n, |n| {
        let start = Instant::now();
        let done = round_trips(n);
        // Each connection asks once at least: then there were more than `n`.
        start.elapsed().mul_f64(n as f64 / done as f64)
    });
    for (stream, _) in all {
        abort(stream);
    }
    elapsed
}

/// Connections of which each has had one question answered.
fn open<D: Dialogue>(address: &str, connections: usize) -> Vec<(TcpStream, D)> {
    let mut all: Vec<(TcpStream, D)> = Vec::new();
    let mut buf = [0; 1024];
    while all.len() < connections {
        let batch = UNACCEPTED.min(connections - all.len());
        let mut new: Vec<_> = (0..batch).map(|_| (connect(address), D::default())).collect();
        for (stream, dialogue) in &mut new {
            dialogue.ask(stream);
        }
        for (stream, dialogue) in &mut new {
            while {
                let read = stream.read(&mut buf).expect("an answer in time");
                assert!(read > 0, "the server has hung up");
                !dialogue.answered(&buf[..read])
            } {}
        }
        all.append(&mut new);
    }
    all
}

/// Connects, sends a byte, has it back, and closes; `n` times.
fn churn(address: &str, n: u64) -> Duration {
    let round = |n: u64| {
        for number in 0..n {
            let mut stream = connect(address);
            let sent = [number as u8];
            let mut received = [0];
            stream.write_all(&sent).unwrap();
            stream.read_exact(&mut received).expect("an answer in time");
            assert_eq!(sent, received);
        }
    };
    round(n / 10 + 10);
    quickest(n, |n| {
        let start = Instant::now();
        round(n);
        start.elapsed()
    })
}

/// Receives `n` MiB. The server sends as long as it can.
fn receive(address: &str, n: u64) -> Duration {
    let mut buf = vec![0; MIB];
    let mut receive = |n: u64| {
        let mut stream = connect(address);
        let start = Instant::now();
        let mut position = 0;
        while position < n as usize * MIB {
            let read = stream.read(&mut buf).expect("more bytes in time");
            assert!(read > 0, "the server has hung up");
            assert_eq!(buf[0], bulk_byte(position));
            assert_eq!(buf[read - 1], bulk_byte(position + read - 1));
            position += read;
        }
        abort(stream);
        start.elapsed()
    };
    receive(n / 10 + 1);
    quickest(n, receive)
}

/// Sends `n` MiB. The server then says how many bytes it has received.
fn send(address: &str, n: u64) -> Duration {
    let send = |n: u64| {
        let mut stream = connect(address);
        let start = Instant::now();
        for _ in 0..n {
            stream.write_all(&BULK).unwrap();
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = [0; 8];
        stream.read_exact(&mut received).expect("an answer in time");
        assert_eq!(u64::from_le_bytes(received), n * MIB as u64);
        start.elapsed()
    };
    send(n / 10 + 1);
    quickest(n, send)
}

/// Opens connections, says so, and holds them until its standard input ends.
fn idle(address: &str, connections: usize) {
    raise_descriptors();
    let all = open::<Echo>(address, connections);
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    for (stream, _) in all {
        abort(stream);
    }
}
