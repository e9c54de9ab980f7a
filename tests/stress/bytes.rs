//! The acts that move bytes: each byte says where it belongs, arrives once and in order, and is
//! accounted for at the end.

use super::ledger::LEDGER;
use super::program::{give_up, insist, micros, on_a_thread};
use fastrand::Rng;
use smol::{Async, Task, Unblock, future, io::SeekFrom, prelude::*, spawn, timeout, unblock};
use std::{
    fs::{File, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
#[cfg(unix)]
use std::{
    os::unix::{
        net::{UnixDatagram, UnixListener, UnixStream},
        process::ExitStatusExt,
    },
    process::{Child, Command, Stdio},
};

const LOCAL: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// Where files and sockets are: the parent of all removes it at the end.
pub(crate) static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

fn path(random: &mut Rng) -> PathBuf {
    DIRECTORY.get().expect("a directory").join(format!("{:016x}", random.u64(..)))
}

/// The byte at this place of a stream.
fn byte(seed: u64, at: u64) -> u8 {
    (seed.wrapping_add(at).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn piece(seed: u64, at: u64, len: usize) -> Vec<u8> {
    (at..).take(len).map(|at| byte(seed, at)).collect()
}

fn check(what: &str, seed: u64, at: u64, bytes: &[u8]) {
    let wrong = bytes.iter().zip(at..).find(|(found, at)| **found != byte(seed, *at));
    if let Some((_, wrong)) = wrong {
        LEDGER
            .fail(&format!("{what} {seed:#x}: another byte at {wrong} of {at}.. {}", bytes.len()));
    }
}

/// How much goes through a stream: mostly little.
fn total(random: &mut Rng) -> u64 {
    match random.u8(0..10) {
        0 => random.u64(0..200_000),
        1..4 => random.u64(0..20_000),
        _ => random.u64(0..500),
    }
}

fn size(random: &mut Rng) -> usize {
    match random.u8(0..8) {
        0 => random.usize(1..40_000),
        1 => 1,
        _ => random.usize(1..2_000),
    }
}

/// Sends so many bytes, then the end, and returns how many they were. A `write` of a socket or a
/// pipe that is dropped has written nothing.
async fn send(mut writer: impl AsyncWrite + Unpin, seed: u64, total: u64) -> io::Result<u64> {
    let life = LEDGER.begin("sender", seed);
    let mut random = Rng::with_seed(seed);
    let mut at = 0;
    while at < total {
        life.stage("at", at);
        let len = size(&mut random).min((total - at) as usize);
        let bytes = piece(seed, at, len);
        if let Some(written) = give_up(&mut random, writer.write(&bytes)).await {
            at += written? as u64;
        }
    }
    writer.flush().await?;
    life.stage("closes at", at);
    writer.close().await?;
    Ok(at)
}

/// Receives to the end, and returns how many bytes there were.
async fn receive(mut reader: impl AsyncRead + Unpin, seed: u64) -> io::Result<u64> {
    let life = LEDGER.begin("receiver", seed);
    let mut random = Rng::with_seed(!seed);
    let mut buffer = vec![0; 40_000];
    let mut at = 0;
    loop {
        life.stage("at", at);
        let buffer = &mut buffer[..size(&mut random)];
        let Some(read) = give_up(&mut random, reader.read(buffer)).await else { continue };
        let read = read?;
        if read == 0 {
            return Ok(at);
        }
        check("a stream", seed, at, &buffer[..read]);
        at += read as u64;
    }
}

/// One way through a connection, or both at once.
async fn exchange<S>(random: &mut Rng, ends: Vec<(S, S)>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut ways = Vec::new();
    for (from, to) in ends {
        let (seed, total) = (random.u64(..), total(random));
        let receiver = spawn(receive(to, seed));
        ways.push((spawn(send(from, seed, total)), receiver));
    }
    for (sender, receiver) in ways {
        let (sent, received) = (sender.await?, receiver.await?);
        assert_eq!(sent, received);
    }
    Ok(())
}

/// A connection whose other end is a thread that blocks and sends back what it gets.
async fn echo<S>(
    random: &mut Rng,
    stream: S,
    other: impl io::Read + Send + 'static,
    mut other_writer: impl io::Write + Send + 'static,
    end: impl FnOnce() + Send + 'static,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Clone + Unpin + Send + 'static,
{
    let (seed, total) = (random.u64(..), total(random));
    let thread = on_a_thread(seed, move || {
        let mut other = other;
        // Whoever lost interest is gone.
        let _ = io::copy(&mut other, &mut other_writer);
        end();
    });
    let receiver = spawn(receive(stream.clone(), seed));
    let sent = spawn(send(stream, seed, total)).await?;
    assert_eq!(sent, receiver.await?);
    thread.await;
    Ok(())
}

/// Small buffers, so that writers wait.
#[cfg(unix)]
fn shrink(random: &mut Rng, socket: &impl std::os::fd::AsFd) {
    if random.bool() {
        let size = random.usize(2_000..8_000);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, size);
    }
}

#[cfg(not(unix))]
fn shrink<T>(_: &mut Rng, _: &T) {}

/// Both ends of a connection, as std sees them, which block.
fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(LOCAL)?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    // Not somebody else's, who tries all the ports of this machine.
    loop {
        let (two, peer) = listener.accept()?;
        if peer == one.local_addr()? {
            return Ok((one, two));
        }
    }
}

pub(crate) async fn tcp(mut random: Rng) -> io::Result<()> {
    let (one, two) = tcp_pair()?;
    shrink(&mut random, &one);
    let one = Async::new(one)?;
    if random.u8(0..4) == 0 {
        let (writer, end) = (two.try_clone()?, two.try_clone()?);
        return echo(&mut random, one, two, writer, move || {
            let _ = end.shutdown(std::net::Shutdown::Write);
        })
        .await;
    }
    let two = Async::new(two)?;
    let mut ends = vec![(one.clone(), two.clone())];
    if random.bool() {
        ends.push((two, one));
    }
    exchange(&mut random, ends).await
}

#[cfg(unix)]
pub(crate) async fn unix(mut random: Rng) -> io::Result<()> {
    if random.u8(0..4) == 0 {
        let (one, two) = UnixStream::pair()?;
        shrink(&mut random, &one);
        let (writer, end) = (two.try_clone()?, two.try_clone()?);
        return echo(&mut random, Async::new(one)?, two, writer, move || {
            let _ = end.shutdown(std::net::Shutdown::Write);
        })
        .await;
    }
    let (one, two) = if random.bool() {
        Async::<UnixStream>::pair()?
    } else {
        let path = path(&mut random);
        let listener = Async::<UnixListener>::bind(&path)?;
        let pair = future::try_zip(Async::<UnixStream>::connect(&path), listener.accept()).await;
        std::fs::remove_file(path)?;
        let (one, (two, _)) = pair?;
        (one, two)
    };
    shrink(&mut random, &one);
    let mut ends = vec![(one.clone(), two.clone())];
    if random.bool() {
        ends.push((two, one));
    }
    exchange(&mut random, ends).await
}

#[cfg(unix)]
pub(crate) async fn pipe(mut random: Rng) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (reader, writer) = (File::from(reader), File::from(writer));
    let (seed, total) = (random.u64(..), total(&mut random));
    match random.u8(0..4) {
        // The other end is a thread, which blocks.
        0 => {
            let mut writer = writer;
            let thread = on_a_thread(seed, move || {
                let _ = io::Write::write_all(&mut writer, &piece(seed, 0, total as usize));
            });
            assert_eq!(receive(Async::new(reader)?, seed).await?, total);
            thread.await;
        }
        // Where the pool has no threads, whoever asks it for this read blocks, maybe instead of the
        // writer.
        1 if !LEDGER.may_starve() => {
            let reader = Unblock::new(reader);
            let receiver = spawn(receive(reader, seed));
            assert_eq!(spawn(send(Async::new(writer)?, seed, total)).await?, total);
            assert_eq!(receiver.await?, total);
        }
        _ => {
            let (reader, writer) = (Async::new(reader)?, Async::new(writer)?);
            let receiver = spawn(receive(reader, seed));
            // A pipe has no end but its last writer's.
            let sender = spawn(send(writer, seed, total));
            assert_eq!(sender.await?, total);
            assert_eq!(receiver.await?, total);
        }
    }
    Ok(())
}

/// Accepts for ever; answers each question with a number.
async fn serve(listener: Async<TcpListener>, seed: u64) {
    let life = LEDGER.begin("server", seed);
    let mut random = Rng::with_seed(seed);
    for accepted in 0.. {
        life.stage("accepted", accepted);
        let accepted = insist(&mut random, || listener.accept()).await;
        let Some((mut stream, _)) = LEDGER.judge("accept", seed, accepted) else {
            // Out of descriptors: others give some back.
            future::yield_now().await;
            continue;
        };
        let life = LEDGER.begin("connection", seed);
        spawn(async move {
            let _life = life;
            let mut question = [0; 8];
            // Whoever lost interest has gone.
            if stream.read_exact(&mut question).await.is_ok() {
                let answer = !u64::from_le_bytes(question);
                let _ = stream.write_all(&answer.to_le_bytes()).await;
            }
        })
        .detach();
    }
}

/// One or two acceptors and their clients, some of which lose interest while they connect.
pub(crate) async fn connections(mut random: Rng) -> io::Result<()> {
    let listener = Async::<TcpListener>::bind(LOCAL)?;
    let address = listener.get_ref().local_addr()?;
    let seed = random.u64(..);
    let servers: Vec<_> =
        (0..random.u64(1..3)).map(|number| spawn(serve(listener.clone(), seed ^ number))).collect();
    let clients: Vec<Task<io::Result<()>>> = (0..random.u32(1..8))
        .map(|_| {
            let seed = random.u64(..);
            let life = LEDGER.begin("client", seed);
            spawn(async move {
                let mut random = Rng::with_seed(seed);
                let asks = async {
                    let connect = || Async::<TcpStream>::connect(address);
                    let mut stream = insist(&mut random, connect).await?;
                    life.stage("connected", 0);
                    stream.write_all(&seed.to_le_bytes()).await?;
                    let mut answer = [0; 8];
                    stream.read_exact(&mut answer).await?;
                    assert_eq!(u64::from_le_bytes(answer), !seed);
                    Ok(())
                };
                // Servers and clients may hold all the descriptors that the others need.
                let patience = if LEDGER.may_starve() { 2 } else { 60 };
                match timeout(Duration::from_secs(patience), asks).await {
                    Ok(result) => result,
                    Err(_) if LEDGER.may_starve() => Ok(()),
                    Err(_) => LEDGER.fail("a connection that nobody serves"),
                }
            })
        })
        .collect();
    for client in clients {
        client.await?;
    }
    drop(servers);
    Ok(())
}

/// Datagrams on the loopback, few at a time, so that none is dropped for want of room.
pub(crate) async fn udp(mut random: Rng) -> io::Result<()> {
    let (one, two) = (Async::<UdpSocket>::bind(LOCAL)?, Async::<UdpSocket>::bind(LOCAL)?);
    let (from, to) = (one.get_ref().local_addr()?, two.get_ref().local_addr()?);
    let connected = random.bool();
    if connected {
        one.get_ref().connect(to)?;
        two.get_ref().connect(from)?;
    }
    let (seed, rounds) = (random.u64(..), random.u64(1..20));
    let mut buffer = [0; 64];
    for round in 0..rounds {
        let window = random.u64(1..6);
        let len = |i: u64| 1 + (seed ^ (round * 8 + i)) as usize % 60;
        let sending = async {
            for i in 0..window {
                let bytes = piece(seed, round * 8 + i, len(i));
                let sent =
                    if connected { one.send(&bytes).await } else { one.send_to(&bytes, to).await };
                assert_eq!(sent?, bytes.len());
            }
            Ok::<_, io::Error>(())
        };
        let receiving = async {
            let mut i = 0;
            while i < window {
                let Some(received) = give_up(&mut random, two.recv_from(&mut buffer)).await else {
                    continue;
                };
                let (read, peer) = received?;
                if peer != from {
                    continue; // a stranger's
                }
                assert_eq!(read, len(i));
                check("a datagram", seed, round * 8 + i, &buffer[..read]);
                i += 1;
            }
            Ok(())
        };
        future::try_zip(sending, receiving).await?;
    }
    Ok(())
}

/// Datagrams that wait for room, and are never lost.
#[cfg(unix)]
pub(crate) async fn unix_datagrams(mut random: Rng) -> io::Result<()> {
    let (one, two) = Async::<UnixDatagram>::pair()?;
    let (seed, many) = (random.u64(..), random.u64(1..80));
    let life = LEDGER.begin("datagrams", seed);
    let sender = spawn(async move {
        let mut random = Rng::with_seed(seed);
        for i in 0..many {
            life.stage("sends", i);
            let bytes = piece(seed, i, 1 + i as usize % 50);
            // One that was dropped has sent nothing.
            let sent = insist(&mut random, || one.send(&bytes)).await?;
            assert_eq!(sent, bytes.len());
        }
        Ok::<_, io::Error>(())
    });
    let mut buffer = [0; 64];
    let mut i = 0;
    while i < many {
        let Some(read) = give_up(&mut random, two.recv(&mut buffer)).await else { continue };
        let read = read?;
        assert_eq!(read, 1 + i as usize % 50);
        check("a datagram", seed, i, &buffer[..read]);
        i += 1;
    }
    sender.await
}

#[cfg(unix)]
pub(crate) async fn child(mut random: Rng) -> io::Result<()> {
    let (seed, total) = (random.u64(..), total(&mut random));
    let life = LEDGER.begin("child", seed);
    match random.u8(0..6) {
        0 => {
            let child = Async::<Child>::spawn(&mut Command::new("true"))?;
            // Nobody waits for it, or somebody does, twice.
            if random.bool() {
                give_up(&mut random, child.status()).await.transpose()?;
                assert!(child.status().await?.success());
            }
        }
        1 => {
            let code = random.u8(..);
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo {seed}; exit {code}")]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = Async::<Child>::spawn(&mut command)?.output().await?;
            assert_eq!(output.status.code(), Some(code as i32));
            assert_eq!(output.stdout, format!("{seed}\n").into_bytes());
            assert!(output.stderr.is_empty());
        }
        2 => {
            let mut command = Command::new("cat");
            let child = Async::<Child>::spawn(command.stdin(Stdio::piped()))?;
            // It ends when its input does, if we lose interest.
            let _stdin = child.take_stdin();
            child.kill()?;
            assert_eq!(child.status().await?.signal(), Some(9));
        }
        _ => {
            let mut command = Command::new("cat");
            let child =
                Async::<Child>::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
            let (stdin, stdout) = (child.take_stdin(), child.take_stdout());
            let (stdin, stdout) = (stdin.expect("a pipe"), stdout.expect("a pipe"));
            let receiver = spawn(receive(stdout, seed));
            assert_eq!(spawn(send(stdin, seed, total)).await?, total);
            life.stage("sent", total);
            assert_eq!(receiver.await?, total);
            assert!(child.status().await?.success());
        }
    }
    Ok(())
}

/// A file is written, with writes that are given up, and read in pieces, with reads that are given
/// up.
pub(crate) async fn file(mut random: Rng) -> io::Result<()> {
    let (path, seed, total) = (path(&mut random), random.u64(..), total(&mut random));
    let life = LEDGER.begin("file", seed);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let opened = path.clone();
    let mut file = Async::from(unblock(move || options.open(opened)).await?);
    let mut at = 0;
    while at < total {
        life.stage("writes at", at);
        let len = size(&mut random).min((total - at) as usize);
        let bytes = piece(seed, at, len);
        match give_up(&mut random, file.write(&bytes)).await {
            Some(written) => at += written? as u64,
            // Whether it was written is what the position says.
            None => {
                let now = file.seek(SeekFrom::Current(0)).await?;
                assert!(now >= at && now <= at + len as u64, "{at} {len} {now}");
                at = now;
            }
        }
        if random.u8(0..20) == 0 {
            file.flush().await?;
        }
    }
    life.stage("has written", at);
    assert_eq!(file.with(|file| file.metadata()).await?.len(), total);
    at = file.seek(SeekFrom::Start(0)).await?;
    let mut buffer = vec![0; size(&mut random)];
    let mut left = 100;
    while left > 0 {
        left -= 1;
        life.stage("reads at", at);
        if random.u8(0..10) == 0 && total > 0 {
            at = file.seek(SeekFrom::Start(random.u64(0..total))).await?;
        }
        match give_up(&mut random, file.read(&mut buffer)).await {
            Some(read) => {
                let read = read?;
                assert!(read > 0 || at == total, "an end at {at} of {total}");
                check("a file", seed, at, &buffer[..read]);
                at += read as u64;
                if read == 0 {
                    break;
                }
            }
            None if random.bool() => {
                let now = file.with(|mut file| io::Seek::stream_position(&mut file)).await?;
                assert_eq!(now, at);
            }
            None => assert_eq!(file.seek(SeekFrom::Current(0)).await?, at),
        }
    }
    drop(file);
    let whole = unblock(move || {
        std::fs::read(&path).and_then(|all| std::fs::remove_file(path).map(|()| all))
    });
    let whole = whole.await?;
    assert_eq!(whole.len() as u64, total);
    check("a whole file", seed, 0, &whole);
    Ok(())
}

/// Many append lines to one file, each to a clone of its own.
pub(crate) async fn shared_file(mut random: Rng) -> io::Result<()> {
    let (path, lines) = (path(&mut random), random.usize(1..10));
    let writers = random.usize(1..150);
    let opened = path.clone();
    let open = move || OpenOptions::new().append(true).create_new(true).open(opened);
    let file = Async::<File>::from(unblock(open).await?);
    let by_reference = random.bool();
    let shared = Arc::new(file);
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (shared, clone, seed) = (shared.clone(), (*shared).clone(), random.u64(..));
            let life = LEDGER.begin("appender", seed);
            spawn(async move {
                let mut clone = clone;
                let mut random = Rng::with_seed(seed);
                for line in 0..lines {
                    life.stage("line", line as u64);
                    // As long as a line is one write, it is whole.
                    let text = format!("{writer} {line}\n");
                    let written = if by_reference {
                        (&*shared).write(text.as_bytes()).await?
                    } else {
                        clone.write(text.as_bytes()).await?
                    };
                    assert_eq!(written, text.len());
                    if random.u8(0..4) == 0 {
                        smol::Timer::after(micros(&mut random, 200)).await;
                    }
                }
                Ok::<_, io::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    drop(shared);
    let text = unblock(move || {
        let text = std::fs::read_to_string(&path)?;
        std::fs::remove_file(path)?;
        Ok::<_, io::Error>(text)
    })
    .await?;
    let mut next = vec![0; writers];
    for line in text.lines() {
        let (writer, line) = line.split_once(' ').expect("two numbers");
        let (writer, line): (usize, usize) = (writer.parse().unwrap(), line.parse().unwrap());
        assert_eq!(next[writer], line, "writer {writer} of {writers}");
        next[writer] += 1;
    }
    assert!(next.iter().all(|found| *found == lines), "{next:?} of {lines} each");
    Ok(())
}

/// Many wait on one handle, and some of them lose interest just when it was their turn: what they
/// were called for goes to another.
pub(crate) async fn waiters(mut random: Rng) -> io::Result<()> {
    let (one, two) = tcp_pair()?;
    let (one, two) = (Async::new(one)?, Async::new(two)?);
    let (seed, total) = (random.u64(..), random.u64(1..300));
    let readers: Vec<_> = (0..random.u64(2..5))
        .map(|number| {
            let (seed, stream) = (seed ^ number, two.clone());
            let life = LEDGER.begin("waiter", seed);
            spawn(async move {
                let mut random = Rng::with_seed(seed);
                let (mut count, mut sum) = (0, 0);
                loop {
                    life.stage("has", count);
                    let mut buffer = [0; 8];
                    let read = if random.u8(0..3) == 0 {
                        let mut op =
                            |mut stream: &TcpStream| io::Read::read(&mut stream, &mut buffer);
                        give_up(&mut random, stream.read_with(&mut op)).await
                    } else if random.bool() {
                        give_up(&mut random, stream.readable()).await.transpose()?;
                        // Somebody else may have been faster, or a signal.
                        match io::Read::read(&mut stream.get_ref(), &mut buffer) {
                            Err(err) if err.kind() == io::ErrorKind::WouldBlock => None,
                            Err(err) if err.kind() == io::ErrorKind::Interrupted => None,
                            read => Some(read),
                        }
                    } else {
                        give_up(&mut random, (&stream).read(&mut buffer)).await
                    };
                    match read.transpose()? {
                        Some(0) => return Ok::<_, io::Error>((count, sum)),
                        Some(read) => {
                            count += read as u64;
                            sum += buffer[..read].iter().map(|byte| *byte as u64).sum::<u64>();
                        }
                        None => LEDGER.did(1),
                    }
                }
            })
        })
        .collect();
    let mut writer = one;
    for at in 0..total {
        writer.write_all(&[byte(seed, at)]).await?;
        if random.u8(0..3) == 0 {
            future::yield_now().await;
        }
    }
    writer.close().await?;
    let (mut count, mut sum) = (0, 0);
    for reader in readers {
        let had = reader.await?;
        (count, sum) = (count + had.0, sum + had.1);
    }
    assert_eq!(count, total);
    assert_eq!(sum, (0..total).map(|at| byte(seed, at) as u64).sum::<u64>());
    Ok(())
}

/// What blocks, on the pool: an iterator, whose items come once and in order, and a writer.
pub(crate) async fn unblocked(mut random: Rng) -> io::Result<()> {
    let (seed, many) = (random.u64(..), random.u64(0..40));
    let life = LEDGER.begin("unblocked", seed);
    if random.bool() {
        let mut items = Unblock::new((0..many).map(move |at| {
            life.stage("item", at);
            (at, LEDGER.begin("item", seed))
        }));
        let mut at = 0;
        loop {
            match give_up(&mut random, items.next()).await {
                None => continue,
                Some(None) => break,
                Some(Some((item, _life))) => {
                    assert_eq!(item, at);
                    at += 1;
                }
            }
        }
        assert_eq!(at, many);
        return Ok(());
    }
    let total = total(&mut random);
    let mut writer = Unblock::new(Vec::new());
    let mut at = 0;
    while at < total {
        life.stage("at", at);
        let len = size(&mut random).min((total - at) as usize);
        let bytes = piece(seed, at, len);
        match give_up(&mut random, writer.write(&bytes)).await {
            Some(written) => at += written? as u64,
            // Whether it was written can be seen.
            None => at = writer.with_mut(|all| all.len() as u64).await,
        }
    }
    writer.flush().await?;
    assert_eq!(writer.get_mut().await.len() as u64, total);
    check("a writer", seed, 0, &writer.into_inner().await);
    Ok(())
}
