//! Libraries that stand on async-io, async-executor and blocking, each in use against itself.
//!
//! Each function does the first half of its work, waits in [`Meeting::all_in_use`] with everything
//! open, and does the rest.

use async_lock::Barrier;
use smol::{future, prelude::*};
use std::{
    collections::BTreeMap,
    error::Error,
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// What any of the libraries may say when something fails.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Where those who use a library wait for each other.
#[derive(Debug)]
pub struct Meeting(Barrier);

impl Meeting {
    /// For so many.
    pub fn new(members: usize) -> Meeting {
        Meeting(Barrier::new(members))
    }

    /// Waits until all are here, and again until all want to go on.
    pub async fn all_in_use(&self) {
        self.0.wait().await;
        self.0.wait().await;
    }
}

#[cfg(unix)]
mod greeter {
    use std::time::Duration;
    use zbus::object_server::SignalEmitter;

    pub(super) struct Greeter;

    #[zbus::interface(name = "org.example.Greeter")]
    impl Greeter {
        async fn greet(
            &self,
            name: &str,
            #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        ) -> zbus::fdo::Result<String> {
            // A timer of another library, in a handler of this one.
            async_std::task::sleep(Duration::from_millis(1)).await;
            emitter.greeted(name).await?;
            Ok(format!("hello {name}"))
        }

        #[zbus(signal)]
        async fn greeted(emitter: &SignalEmitter<'_>, name: &str) -> zbus::Result<()>;
    }

    #[zbus::proxy(
        interface = "org.example.Greeter",
        default_service = "org.example.Greeter",
        default_path = "/greeter"
    )]
    pub(super) trait Greeter {
        fn greet(&self, name: &str) -> zbus::Result<String>;

        #[zbus(signal)]
        fn greeted(&self, name: &str) -> zbus::Result<()>;
    }
}

/// zbus: two peers, a method, and a signal, without a bus.
#[cfg(unix)]
pub async fn zbus(meeting: &Meeting) -> Result<()> {
    use greeter::{Greeter, GreeterProxy};
    use zbus::{Guid, connection::Builder};

    let (left, right) = std::os::unix::net::UnixStream::pair()?;
    let server = Builder::async_io_unix_stream(left)
        .server(Guid::generate())?
        .p2p()
        .serve_at("/greeter", Greeter)?
        .build();
    let client = Builder::async_io_unix_stream(right).p2p().build();
    let (_server, client) = future::try_zip(server, client).await?;
    let greeter = GreeterProxy::new(&client).await?;
    let mut signals = greeter.receive_greeted().await?;
    assert_eq!(greeter.greet("first").await?, "hello first");
    meeting.all_in_use().await;
    assert_eq!(greeter.greet("second").await?, "hello second");
    for name in ["first", "second"] {
        let signal = signals.next().await.ok_or("no signal")?;
        assert_eq!(signal.args()?.name, name);
    }
    Ok(())
}

/// quinn: a connection over loopback, two streams, each echoed.
pub async fn quinn(meeting: &Meeting) -> Result<()> {
    use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig, SmolRuntime};
    use rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    };

    // For "localhost", signed by itself, and good until the year 4096.
    let certificate = CertificateDer::from(&include_bytes!("localhost/certificate.der")[..]);
    let key = PrivatePkcs8KeyDer::from(&include_bytes!("localhost/key.der")[..]);
    let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
    let endpoint = |config| -> io::Result<Endpoint> {
        let socket = std::net::UdpSocket::bind(LOOPBACK)?;
        Endpoint::new(EndpointConfig::default(), config, socket, Arc::new(SmolRuntime))
    };
    let server = endpoint(Some(config))?;
    let addr = server.local_addr()?;
    let echo = smol::spawn(async move {
        let connection = server.accept().await.ok_or("closed")?.await?;
        for _ in 0..2 {
            let (mut to, mut from) = connection.accept_bi().await?;
            to.write_all(&from.read_to_end(1 << 20).await?).await?;
            to.finish()?;
        }
        connection.closed().await;
        server.wait_idle().await;
        Result::Ok(())
    });

    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let mut client = endpoint(None)?;
    client.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots))?);
    let connection = client.connect(addr, "localhost")?.await?;
    for round in 0..2 {
        let (mut to, mut from) = connection.open_bi().await?;
        let sent = vec![round; 1 << 20];
        let send = async {
            to.write_all(&sent).await?;
            to.finish()?;
            Result::Ok(())
        };
        let receive = async { Result::Ok(from.read_to_end(1 << 20).await?) };
        let ((), received) = future::try_zip(send, receive).await?;
        assert!(received == sent, "{} bytes came back", received.len());
        if round == 0 {
            meeting.all_in_use().await;
        }
    }
    connection.close(0u8.into(), b"done");
    client.wait_idle().await;
    echo.await
}

/// async-net: TCP, UDP and Unix streams, each echoed; a name is looked up.
pub async fn async_net(meeting: &Meeting) -> Result<()> {
    use async_net::{TcpListener, TcpStream, UdpSocket};

    async fn echo_all(mut from: impl AsyncRead + AsyncWrite + Clone + Unpin) -> io::Result<()> {
        let mut to = from.clone();
        smol::io::copy(&mut from, &mut to).await?;
        to.close().await
    }

    let listener = TcpListener::bind(LOOPBACK).await?;
    let addr = listener.local_addr()?;
    let echo = smol::spawn(async move { echo_all(listener.accept().await?.0).await });
    let mut stream = TcpStream::connect(addr).await?;
    let datagrams = [UdpSocket::bind(LOOPBACK).await?, UdpSocket::bind(LOOPBACK).await?];
    let addrs = async_net::resolve(("localhost", addr.port())).await?;
    assert!(addrs.iter().all(|addr: &SocketAddr| addr.ip().is_loopback()), "{addrs:?}");
    for round in [b"one", b"two"] {
        stream.write_all(round).await?;
        let mut buf = [0; 3];
        stream.read_exact(&mut buf).await?;
        assert_eq!(&buf, round);
        datagrams[0].send_to(round, datagrams[1].local_addr()?).await?;
        let (len, from) = datagrams[1].recv_from(&mut buf).await?;
        assert_eq!((&buf[..len], from), (&round[..], datagrams[0].local_addr()?));
        if round == b"one" {
            meeting.all_in_use().await;
        }
    }
    stream.close().await?;
    assert_eq!(stream.read(&mut [0]).await?, 0);
    echo.await?;

    #[cfg(unix)]
    {
        let (mut stream, other) = async_net::unix::UnixStream::pair()?;
        let echo = smol::spawn(echo_all(other));
        stream.write_all(b"unix").await?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        assert_eq!(text, "unix");
        echo.await?;
    }
    Ok(())
}

/// async-process: a child that is written to and read from, and its status.
#[cfg(unix)]
pub async fn async_process(meeting: &Meeting) -> Result<()> {
    use async_process::{Command, Stdio};

    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let mut buf = [0; 5];
    stdin.write_all(b"first").await?;
    stdout.read_exact(&mut buf).await?;
    assert_eq!(&buf, b"first");
    meeting.all_in_use().await;
    // More than a pipe holds, so that both sides have to wait for each other.
    let sent = vec![7; 1 << 20];
    let send = async {
        stdin.write_all(&sent).await?;
        drop(stdin);
        Result::Ok(())
    };
    let mut received = Vec::new();
    let receive = async { Result::Ok(stdout.read_to_end(&mut received).await?) };
    future::try_zip(send, receive).await?;
    assert!(received == sent, "{} bytes came back", received.len());
    assert!(child.status().await?.success());

    let output = Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]).output().await?;
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(output.status.code(), Some(3));
    Ok(())
}

/// async-fs: a file and a directory.
pub async fn async_fs(meeting: &Meeting) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    let mut file = async_fs::File::create(&path).await?;
    file.write_all(b"hello").await?;
    meeting.all_in_use().await;
    file.write_all(b" world").await?;
    file.sync_all().await?;
    assert_eq!(async_fs::read_to_string(&path).await?, "hello world");
    let mut file = async_fs::File::open(&path).await?;
    file.seek(io::SeekFrom::Start(6)).await?;
    let mut text = String::new();
    file.read_to_string(&mut text).await?;
    assert_eq!(text, "world");
    let names: Vec<_> = async_fs::read_dir(dir.path()).await?.try_collect().await?;
    assert_eq!(names.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["file"]);
    Ok(())
}

/// async-std: tasks of its own, a socket, a timer, and its pool.
pub async fn async_std(meeting: &Meeting) -> Result<()> {
    use async_std::{net, task};

    let listener = net::TcpListener::bind(LOOPBACK).await?;
    let addr = listener.local_addr()?;
    let echo = task::spawn(async move {
        let (stream, _) = listener.accept().await?;
        async_std::io::copy(&mut &stream, &mut &stream).await
    });
    let mut stream = net::TcpStream::connect(addr).await?;
    let mut buf = [0; 5];
    stream.write_all(b"first").await?;
    stream.read_exact(&mut buf).await?;
    assert_eq!(&buf, b"first");
    meeting.all_in_use().await;
    let late = async_std::future::timeout(Duration::from_millis(1), stream.read(&mut buf)).await;
    assert!(late.is_err(), "nobody wrote");
    assert_eq!(task::spawn_blocking(|| 1 + 2).await, 3);
    stream.shutdown(std::net::Shutdown::Write)?;
    assert_eq!(echo.await?, 5);
    // From a thread that knows nothing of us.
    let thread = std::thread::spawn(|| task::block_on(async { task::spawn(async { 4 }).await }));
    assert_eq!(smol::unblock(|| thread.join()).await.map_err(|_| "a panic")?, 4);
    Ok(())
}

/// All of them at once; a look at the process when all are in use.
#[cfg(unix)]
pub async fn all() -> Result<Census> {
    let meeting = &Meeting::new(7);
    let look = async {
        // A timer and a job of our own: smol is in use, too.
        smol::Timer::after(Duration::from_millis(1)).await;
        smol::unblock(|| ()).await;
        meeting.0.wait().await;
        let census = census()?;
        meeting.0.wait().await;
        Ok(census)
    };
    let all = [
        zbus(meeting).boxed(),
        quinn(meeting).boxed(),
        async_net(meeting).boxed(),
        async_process(meeting).boxed(),
        async_fs(meeting).boxed(),
        async_std(meeting).boxed(),
    ];
    let all = all.into_iter().fold(future::ready(Ok(())).boxed(), |these, next| {
        async { future::try_zip(these, next).await.map(drop) }.boxed()
    });
    Ok(future::try_zip(look, all).await?.0)
}

/// What a process has of threads and of pollers.
#[derive(Debug)]
pub struct Census {
    /// How many threads there are of each name. The kernel cuts names after 15 bytes.
    pub threads: BTreeMap<String, usize>,
    /// How many epoll descriptors are open: one for each reactor.
    pub reactors: usize,
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "epoll descriptors: {}", self.reactors)?;
        writeln!(f, "threads: {}", self.threads.values().sum::<usize>())?;
        self.threads.iter().try_for_each(|(name, count)| writeln!(f, "{count:4} {name}"))
    }
}

/// Counts the threads and pollers of this process, as Linux tells.
pub fn census() -> io::Result<Census> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task")? {
        // One that ends meanwhile is none.
        let Ok(name) = fs::read_to_string(task?.path().join("comm")) else { continue };
        // Those of a pool have numbers.
        let name = name.trim_end().trim_end_matches(|c: char| c.is_ascii_digit());
        *threads.entry(name.to_string()).or_default() += 1;
    }
    let fds = fs::read_dir("/proc/self/fd")?;
    let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let reactors = targets.filter(|target| target.as_os_str() == "anon_inode:[eventpoll]").count();
    Ok(Census { threads, reactors })
}
