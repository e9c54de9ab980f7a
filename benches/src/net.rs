//! Sockets: each row has a server under the runtime, loaded by the client process (`client.rs`), which also measures.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::time::ClockId;
use tokio::io as tokio_io;

use crate::client::{self, HELLO, MESSAGE};
use crate::each;
use crate::memory::{heap, resident};
use crate::raw_net;
use crate::row::{ALL, RUNTIMES, Report, Row, Unit, best_of_five};
use crate::runtimes::{AsyncStd, Ours, Runtime, Smol2, Tokio, TokioCt};

// The adapter of the example, for the three whose streams are those of futures-io.
#[path = "../../examples/common/hyper.rs"]
mod hyper_io;
use hyper_io::HyperIo;

/// What a server offers to one `read` of an echo: more than a message, so that every read is a short one.
pub const READ: usize = 256;
/// What a receiver of bulk data offers.
pub const PIECE: usize = 64 * 1024;
/// Pairs of `tcp_inproc`.
const PAIRS: usize = 16;

/// What a stream of bytes can do, whichever traits it speaks.
pub(crate) trait Stream: Send + Unpin + 'static {
    fn read(&mut self, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
    fn read_exact(&mut self, buf: &mut [u8]) -> impl Future<Output = io::Result<()>> + Send;
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// `streams!(module of the traits: types)`
macro_rules! streams {
    ($traits:ident: $($stream:ty),+) => {$(
        impl $crate::net::Stream for $stream {
            async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                $traits::AsyncReadExt::read(self, buf).await
            }
            async fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
                $traits::AsyncReadExt::read_exact(self, buf).await.map(drop)
            }
            async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
                $traits::AsyncWriteExt::write_all(self, bytes).await
            }
        }
    )+};
}
pub(crate) use streams;

streams!(futures_lite: smol::Async<TcpStream>, smol::Async<UnixStream>, smol2::Async<TcpStream>, smol2::Async<UnixStream>);
streams!(futures_lite: async_std::net::TcpStream, async_std::os::unix::net::UnixStream);
streams!(tokio_io: tokio::net::TcpStream, tokio::net::UnixStream);

/// The sockets of a runtime. Listeners are std's, so that all have the same backlog; they and their streams do not block, and
/// send small messages at once.
pub(crate) trait Net: Runtime {
    type Listener: Send + Sync + 'static;
    type Tcp: Stream;
    type Unix: Stream;
    type Udp: Send + Sync + 'static;
    type Hyper: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static;
    fn listener(listener: TcpListener) -> io::Result<Self::Listener>;
    fn accept(listener: &Self::Listener) -> impl Future<Output = io::Result<Self::Tcp>> + Send;
    fn connect(address: SocketAddr) -> impl Future<Output = io::Result<Self::Tcp>> + Send;
    fn accept_unix(listener: UnixListener) -> impl Future<Output = io::Result<Self::Unix>> + Send;
    fn udp(socket: UdpSocket) -> io::Result<Self::Udp>;
    fn recv_from(
        socket: &Self::Udp,
        buf: &mut [u8],
    ) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send;
    fn send_to(
        socket: &Self::Udp,
        bytes: &[u8],
        to: SocketAddr,
    ) -> impl Future<Output = io::Result<usize>> + Send;
    fn hyper(stream: Self::Tcp) -> Self::Hyper;
}

/// The two whose sockets are `Async<std's>`.
macro_rules! net_async {
    ($runtime:ident, $smol:ident) => {
        impl Net for $runtime {
            type Listener = $smol::Async<TcpListener>;
            type Tcp = $smol::Async<TcpStream>;
            type Unix = $smol::Async<UnixStream>;
            type Udp = $smol::Async<UdpSocket>;
            type Hyper = HyperIo<Self::Tcp>;
            fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
                $smol::Async::new(listener)
            }
            async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
                let (stream, _) = listener.accept().await?;
                stream.get_ref().set_nodelay(true)?;
                Ok(stream)
            }
            async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
                let stream = $smol::Async::<TcpStream>::connect(address).await?;
                stream.get_ref().set_nodelay(true)?;
                Ok(stream)
            }
            async fn accept_unix(listener: UnixListener) -> io::Result<Self::Unix> {
                Ok($smol::Async::new(listener)?.accept().await?.0)
            }
            fn udp(socket: UdpSocket) -> io::Result<Self::Udp> {
                $smol::Async::new(socket)
            }
            async fn recv_from(
                socket: &Self::Udp,
                buf: &mut [u8],
            ) -> io::Result<(usize, SocketAddr)> {
                socket.recv_from(buf).await
            }
            async fn send_to(
                socket: &Self::Udp,
                bytes: &[u8],
                to: SocketAddr,
            ) -> io::Result<usize> {
                socket.send_to(bytes, to).await
            }
            fn hyper(stream: Self::Tcp) -> Self::Hyper {
                HyperIo(stream)
            }
        }
    };
}

net_async!(Ours, smol);
net_async!(Smol2, smol2);

macro_rules! net_tokio {
    ($runtime:ident) => {
        impl Net for $runtime {
            type Listener = tokio::net::TcpListener;
            type Tcp = tokio::net::TcpStream;
            type Unix = tokio::net::UnixStream;
            type Udp = tokio::net::UdpSocket;
            type Hyper = TokioIo<Self::Tcp>;
            fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener)
            }
            async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            }
            async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
                let stream = tokio::net::TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            }
            async fn accept_unix(listener: UnixListener) -> io::Result<Self::Unix> {
                listener.set_nonblocking(true)?;
                Ok(tokio::net::UnixListener::from_std(listener)?.accept().await?.0)
            }
            fn udp(socket: UdpSocket) -> io::Result<Self::Udp> {
                socket.set_nonblocking(true)?;
                tokio::net::UdpSocket::from_std(socket)
            }
            async fn recv_from(
                socket: &Self::Udp,
                buf: &mut [u8],
            ) -> io::Result<(usize, SocketAddr)> {
                socket.recv_from(buf).await
            }
            async fn send_to(
                socket: &Self::Udp,
                bytes: &[u8],
                to: SocketAddr,
            ) -> io::Result<usize> {
                socket.send_to(bytes, to).await
            }
            fn hyper(stream: Self::Tcp) -> Self::Hyper {
                TokioIo::new(stream)
            }
        }
    };
}

net_tokio!(Tokio);
net_tokio!(TokioCt);

impl Net for AsyncStd {
    type Listener = async_std::net::TcpListener;
    type Tcp = async_std::net::TcpStream;
    type Unix = async_std::os::unix::net::UnixStream;
    type Udp = async_std::net::UdpSocket;
    type Hyper = HyperIo<Self::Tcp>;
    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        Ok(listener.into())
    }
    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let stream = async_std::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
    async fn accept_unix(listener: UnixListener) -> io::Result<Self::Unix> {
        Ok(async_std::os::unix::net::UnixListener::from(listener).accept().await?.0)
    }
    fn udp(socket: UdpSocket) -> io::Result<Self::Udp> {
        Ok(socket.into())
    }
    async fn recv_from(socket: &Self::Udp, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        socket.recv_from(buf).await
    }
    async fn send_to(socket: &Self::Udp, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        socket.send_to(bytes, to).await
    }
    fn hyper(stream: Self::Tcp) -> Self::Hyper {
        HyperIo(stream)
    }
}

/// What a TCP server does on each connection.
#[derive(Clone, Copy)]
pub enum Service {
    /// Sends back what it receives.
    Echo,
    /// Says hello, with hyper.
    Http,
    /// Sends bulk data as long as it can.
    Source,
    /// Receives bulk data, and says how much it was.
    Sink,
}

/// The errors are those of clients that have gone.
async fn answer<R: Net>(mut stream: R::Tcp, service: Service) -> io::Result<()> {
    match service {
        Service::Echo => echo(stream).await,
        Service::Http => {
            let hello = |_: Request<_>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(HELLO))))
            };
            let http = http1::Builder::new().serve_connection(R::hyper(stream), service_fn(hello));
            http.await.map_err(io::Error::other)
        }
        Service::Source => loop {
            stream.write_all(&client::BULK).await?;
        },
        Service::Sink => {
            let mut buf = vec![0; PIECE];
            let mut position = 0;
            loop {
                let read = stream.read(&mut buf).await?;
                if read == 0 {
                    return stream.write_all(&(position as u64).to_le_bytes()).await;
                }
                assert_eq!(buf[0], client::bulk_byte(position));
                position += read;
            }
        }
    }
}

async fn echo(mut stream: impl Stream) -> io::Result<()> {
    let mut buf = [0; READ];
    loop {
        let read = stream.read(&mut buf).await?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buf[..read]).await?;
    }
}

/// A task for each connection.
async fn server<R: Net>(listener: TcpListener, service: Service) {
    let listener = R::listener(listener).unwrap();
    loop {
        let stream = R::accept(&listener).await.unwrap();
        R::detach(async move {
            let _ = answer::<R>(stream, service).await;
        });
    }
}

async fn unix_server<R: Net>(listener: UnixListener) {
    let _ = echo(R::accept_unix(listener).await.unwrap()).await;
}

async fn udp_server<R: Net>(socket: UdpSocket) {
    let socket = R::udp(socket).unwrap();
    let mut buf = [0; READ];
    loop {
        let (read, peer) = R::recv_from(&socket, &mut buf).await.unwrap();
        R::send_to(&socket, &buf[..read], peer).await.unwrap();
    }
}

/// Runs a server on the workers, and what loads it on a thread of its own, until that returns.
fn beside<R: Runtime, T: Send + 'static>(
    server: impl Future<Output = ()> + Send + 'static,
    load: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, report) = async_channel::bounded(1);
    R::run(async {
        R::detach(server);
        thread::spawn(move || sender.send_blocking(load()));
        report.recv().await.expect("the load's report")
    })
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // More than std asks for: wrk connects a thousand times at once.
    rustix::net::listen(&listener, 4096).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn serve<T: Send + 'static>(
    runtime: &str,
    service: Service,
    load: impl FnOnce(&str) -> T + Send + 'static,
) -> T {
    client::raise_descriptors();
    let (listener, address) = listen();
    let load = move || load(&address.to_string());
    each!(runtime,
        raw => {
            thread::spawn(move || raw_net::serve(&listener, service));
            load()
        },
        R => beside::<R, T>(server::<R>(listener, service), load))
}

/// Starts the client.
fn start_client(kind: &str, address: &str, connections: u64, n: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["client", kind, address])
        .args([connections.to_string(), n.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the client to its end, and reports the time that it has measured.
fn run_client(kind: &str, address: &str, connections: u64, n: u64) -> Report {
    let output = start_client(kind, address, connections, n).wait_with_output().unwrap();
    assert!(output.status.success(), "the client: {}", output.status);
    let nanos = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    Report::time(Duration::from_nanos(nanos), n)
}

fn many(runtime: &str, service: Service, kind: &'static str, connections: u64, n: u64) -> Report {
    serve(runtime, service, move |address| run_client(kind, address, connections, n))
}

fn tcp_ping_pong(runtime: &str, n: u64) -> Report {
    if runtime == "raw" {
        let (listener, address) = listen();
        thread::spawn(move || raw_net::ping_pong(&listener));
        return run_client("tcp", &address.to_string(), 1, n);
    }
    many(runtime, Service::Echo, "tcp", 1, n)
}

fn unix_ping_pong(runtime: &str, n: u64) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let load = move || run_client("unix", path.to_str().unwrap(), 1, n);
    each!(runtime,
        raw => {
            thread::spawn(move || raw_net::unix(&listener));
            load()
        },
        R => beside::<R, _>(unix_server::<R>(listener), load))
}

/// What a device on a battery does all day.
fn messages(runtime: &str, n: u64) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let writer = move || {
        let mut stream = UnixStream::connect(path).unwrap();
        let mut send = |i: u64| {
            thread::sleep(Duration::from_millis(20));
            stream.write_all(&[i as u8]).unwrap();
        };
        // What is built when it is first needed has been built after some of them.
        (0..5).for_each(&mut send);
        thread::sleep(Duration::from_millis(10));
        let start = (cpu_time(), wakeups());
        (0..n).for_each(&mut send);
        thread::sleep(Duration::from_millis(10));
        let end = (cpu_time(), wakeups());
        drop(stream);
        let cpu = end.0.saturating_sub(start.0).as_nanos() as f64 / n as f64;
        Report(vec![("", cpu), ("wakeups", end.1.saturating_sub(start.1) as f64 / n as f64)])
    };
    each!(runtime,
    raw => {
        let writer = thread::spawn(writer);
        let mut stream = listener.accept().unwrap().0;
        let (mut byte, mut had) = ([0], 0);
        while stream.read(&mut byte).unwrap() == 1 {
            had = check_message(byte, had, n);
        }
        assert_eq!(had, n + 5);
        writer.join().unwrap()
    },
    R => R::run(async {
        let reader = R::spawn(async move {
            let mut stream = R::accept_unix(listener).await.unwrap();
            let (mut byte, mut had) = ([0], 0);
            while stream.read(&mut byte).await.unwrap() == 1 {
                had = check_message(byte, had, n);
            }
            had
        });
        let writer = thread::spawn(writer);
        assert_eq!(reader.await, n + 5);
        writer.join().unwrap()
    }))
}

/// Five messages for practice, then `n`; says how many there were.
fn check_message(byte: [u8; 1], had: u64, n: u64) -> u64 {
    assert_eq!(byte[0] as u64, had.checked_sub(5).unwrap_or(had) % 256);
    assert!(had < n + 5);
    had + 1
}

fn udp_ping_pong(runtime: &str, n: u64) -> Report {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let load = move || run_client("udp", &address, 1, n);
    each!(runtime,
        raw => {
            thread::spawn(move || raw_net::udp(&socket));
            load()
        },
        R => beside::<R, _>(udp_server::<R>(socket), load))
}

/// Clients and servers are tasks of the same runtime; `n` messages go there and back in all.
async fn both_ends<R: Net>(n: u64) -> Duration {
    let (listener, address) = listen();
    R::detach(server::<R>(listener, Service::Echo));
    let mut streams = Vec::new();
    for _ in 0..PAIRS {
        streams.push(R::connect(address).await.unwrap());
    }
    let each = n.div_ceil(PAIRS as u64);
    let mut elapsed = Duration::ZERO;
    for n in [each / 10 + 1, each] {
        let start = Instant::now();
        let tasks: Vec<_> = streams.drain(..).map(|stream| R::spawn(talk(stream, n))).collect();
        for task in tasks {
            streams.push(task.await);
        }
        elapsed = start.elapsed();
    }
    elapsed
}

async fn talk<S: Stream>(mut stream: S, n: u64) -> S {
    let mut received = [0; MESSAGE];
    for number in 0..n {
        let sent = client::message(number);
        stream.write_all(&sent).await.unwrap();
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(sent, received);
    }
    stream
}

/// `seconds` of wrk: nanoseconds per request, and the 99th percentile of the latency.
fn wrk(runtime: &str, connections: u64, seconds: u64) -> Report {
    serve(runtime, Service::Http, move |address| {
        let mut wrk = Command::new("wrk");
        wrk.arg("-t1").args([format!("-c{connections}"), format!("-d{seconds}")]);
        let Ok(output) = wrk.arg("--latency").arg(format!("http://{address}/")).output() else {
            eprintln!("wrk is not installed: its rows are left out");
            return Report(Vec::new());
        };
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = ["Non-2xx", "Socket errors"].iter().any(|error| text.contains(error));
        assert!(output.status.success() && !errors, "{text}");
        let value = |label| {
            let mut words = text.split_whitespace();
            words.find(|word| *word == label).and_then(|_| words.next()).expect("a number from wrk")
        };
        let rate: f64 = value("Requests/sec:").parse().unwrap();
        Report(vec![("", 1e9 / rate), ("p99", nanos(value("99%")))])
    })
}

/// wrk's way of writing a duration.
fn nanos(text: &str) -> f64 {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap());
    let scale = match unit {
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => panic!("a duration from wrk: {text}"),
    };
    number.parse::<f64>().unwrap() * scale
}

/// So many more connections, idle as long as `look` runs.
fn with_idle<T>(address: &str, connections: u64, look: impl FnOnce() -> T) -> T {
    let mut client = start_client("idle", address, connections, 0);
    let mut ready = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    let seen = look();
    // This also closes the client's standard input.
    assert!(client.wait().unwrap().success());
    seen
}

/// What a connection costs in memory, the task that serves it included.
fn memory(runtime: &str, n: u64) -> Report {
    serve(runtime, Service::Echo, move |address| {
        let now = || (heap(), resident());
        with_idle(address, 100, || {
            let (heap_before, resident_before) = now();
            let (heap, resident) = with_idle(address, n, now);
            let each = |before, after| (after - before) / n as f64;
            Report(vec![
                ("", each(heap_before.bytes, heap.bytes)),
                ("allocations", each(heap_before.allocations, heap.allocations)),
                ("resident", each(resident_before, resident)),
            ])
        })
    })
}

/// What idle connections cost in time: nanoseconds of processor per second, in steps of a
/// hundred-thousandth, and how often a thread wakes up.
fn idle(runtime: &str, n: u64) -> Report {
    serve(runtime, Service::Echo, move |address| {
        with_idle(address, n, || {
            thread::sleep(Duration::from_millis(200));
            let (cpu_before, wakeups_before) = (cpu_time(), wakeups());
            thread::sleep(Duration::from_secs(1));
            let cpu = cpu_time().saturating_sub(cpu_before).as_micros() / 10 * 10_000;
            let wakeups = wakeups() - wakeups_before;
            Report(vec![("", cpu as f64), ("wakeups", wakeups as f64)])
        })
    })
}

/// Processor time of the other threads of this process, and a microsecond for looking.
fn cpu_time() -> Duration {
    let [mine, all] = [ClockId::ThreadCPUTime, ClockId::ProcessCPUTime].map(|clock| {
        let time = rustix::time::clock_gettime(clock);
        Duration::try_from(time).unwrap()
    });
    all - mine
}

/// How often the other threads of this process have waited for something.
fn wakeups() -> u64 {
    let myself = rustix::thread::gettid().as_raw_nonzero().to_string();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap());
    let others = threads.filter(|entry| entry.file_name() != *myself);
    let waits = others.map(|entry| {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    });
    waits.sum()
}

const fn echo_row<const CONNECTIONS: u64>(name: &'static str) -> Row {
    const WHAT: &str = "a message of 64 bytes to an echo server and back, so many connections";
    Row::new(name, WHAT, (25_000, 100_000), ALL, |runtime, n| {
        many(runtime, Service::Echo, "echo", CONNECTIONS, n)
    })
}

/// For the table of growth alone.
const fn growing_row<const CONNECTIONS: u64>(name: &'static str) -> Row {
    let row = echo_row::<CONNECTIONS>(name).workers(1);
    Row { quick: 0, ..row }
}

const fn http_row<const CONNECTIONS: u64>(name: &'static str) -> Row {
    const WHAT: &str = "a request to a hello-world server of hyper, so many connections";
    Row::new(name, WHAT, (20_000, 80_000), ALL, |runtime, n| {
        many(runtime, Service::Http, "http", CONNECTIONS, n)
    })
    .workers(1)
}

const fn wrk_row<const CONNECTIONS: u64>(name: &'static str) -> Row {
    const WHAT: &str = "the same, asked by wrk (full mode only)";
    Row::new(name, WHAT, (0, 2), ALL, |runtime, seconds| wrk(runtime, CONNECTIONS, seconds))
}

const fn bulk_row(
    name: &'static str,
    what: &'static str,
    run: fn(runtime: &str, n: u64) -> Report,
) -> Row {
    Row::new(name, what, (200, 1_000), ALL, run).workers(1)
}

const fn ping_pong_row(
    name: &'static str,
    what: &'static str,
    run: fn(runtime: &str, n: u64) -> Report,
) -> Row {
    Row::new(name, what, (10_000, 60_000), ALL, run).workers(1)
}

pub const ROWS: &[Row] = &[
    Row {
        quick: 1_000,
        full: 6_000,
        ..ping_pong_row(
            "tcp_pp_1",
            "a message of 64 bytes to an echo server and back, one connection",
            tcp_ping_pong,
        )
    },
    ping_pong_row("tcp_pp_same", "the same with client and server on one processor", tcp_ping_pong)
        .one_cpu(),
    echo_row::<64>("tcp_echo_64").workers(1),
    echo_row::<1_000>("tcp_echo_1000").workers(1),
    echo_row::<64>("tcp_echo_64_2w"),
    echo_row::<1_000>("tcp_echo_1000_2w"),
    Row::new(
        "tcp_inproc",
        "the same, 16 connections with both ends in the process",
        (15_000, 80_000),
        ALL,
        |runtime, n| {
            let raw = |n| raw_net::both_ends(&listen().0, PAIRS, n);
            best_of_five(n, |n| each!(runtime, raw => raw(n), R => R::run(both_ends::<R>(n))))
        },
    ),
    Row::new(
        "tcp_churn",
        "connect, one byte to an echo server and back, close",
        (1_000, 5_000),
        ALL,
        |runtime, n| many(runtime, Service::Echo, "churn", 1, n),
    ),
    bulk_row("tcp_send_1m", "1 MiB sent, in one piece", |runtime, n| {
        many(runtime, Service::Source, "receive", 1, n)
    }),
    bulk_row("tcp_recv_64k", "1 MiB received, in pieces of 64 KiB", |runtime, n| {
        many(runtime, Service::Sink, "send", 1, n)
    }),
    ping_pong_row(
        "udp_pp",
        "a datagram of 64 bytes there and back, all on one processor",
        udp_ping_pong,
    )
    .one_cpu(),
    ping_pong_row("unix_pp", "the same with a Unix socket", unix_ping_pong).one_cpu(),
    Row::new(
        "message_20ms",
        "a task on the workers reads one byte every 20 ms from a Unix socket: processor time per \
        message, and `wakeups` of the runtime's threads",
        (25, 100),
        ALL,
        messages,
    ),
    http_row::<64>("http_64"),
    http_row::<1_000>("http_1000"),
    wrk_row::<64>("http_wrk_64"),
    wrk_row::<1_000>("http_wrk_1000"),
    Row::new("mem_conn", "an idle connection and its task", (1_000, 10_000), RUNTIMES, memory)
        .unit(Unit::Bytes),
    Row::new(
        "idle",
        "processor time in a second with 10,000 idle connections (full mode only)",
        (0, 10_000),
        RUNTIMES,
        idle,
    ),
    growing_row::<10>("grow_conn_10"),
    growing_row::<100>("grow_conn_100"),
    growing_row::<1_000>("grow_conn_1000"),
    growing_row::<10_000>("grow_conn_10000"),
];
