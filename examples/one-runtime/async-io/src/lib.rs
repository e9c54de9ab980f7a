//! The face of `async-io` 2, on smol's reactor. See the README one folder up.

pub use smol::{Timer, block_on};

use Io::{Beside, Whole};
use futures_lite::{AsyncRead, AsyncWrite, Stream, StreamExt};
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, AsSocket, BorrowedSocket, OwnedSocket, RawSocket};
#[cfg(unix)]
use std::os::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream},
};
use std::{
    fmt,
    future::Future,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

#[cfg(unix)]
type Own = OwnedFd;
#[cfg(windows)]
type Own = OwnedSocket;

/// [`smol::Async`] with the signatures of theirs.
pub struct Async<T>(Io<T>);

enum Io<T> {
    /// One of std's sockets.
    Whole(smol::Async<T>),
    /// Anything, from `new`. Theirs also takes what is borrowed, and reads and writes through
    /// `&mut T`; ours does neither. So a duplicate of the handle is what the poller has.
    Beside(smol::Async<Own>, T),
}

impl<T> AsRef<T> for Async<T> {
    fn as_ref(&self) -> &T {
        self.get_ref()
    }
}

impl<T: fmt::Debug> fmt::Debug for Async<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Async").field(self.get_ref()).finish()
    }
}

impl<T> Unpin for Async<T> {}

impl<T> Async<T> {
    /// The thing itself.
    pub fn get_ref(&self) -> &T {
        match &self.0 {
            Whole(io) => io.get_ref(),
            Beside(_, io) => io,
        }
    }

    /// Takes the thing out. It stays in non-blocking mode.
    pub fn into_inner(self) -> io::Result<T> {
        match self.0 {
            Whole(io) => io.into_inner(),
            Beside(_, io) => Ok(io),
        }
    }

    /// Waits until it is readable.
    pub fn readable(&self) -> Readable<'_, T> {
        Readable(self)
    }

    /// Waits until it is writable.
    pub fn writable(&self) -> Writable<'_, T> {
        Writable(self)
    }

    /// Waits until it is readable, and keeps it meanwhile.
    pub fn readable_owned(self: Arc<Self>) -> ReadableOwned<T> {
        ReadableOwned(self)
    }

    /// Waits until it is writable, and keeps it meanwhile.
    pub fn writable_owned(self: Arc<Self>) -> WritableOwned<T> {
        WritableOwned(self)
    }

    /// [`readable`](Async::readable) for those who write `poll` functions.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Whole(io) => io.poll_readable(cx),
            Beside(handle, _) => handle.poll_readable(cx),
        }
    }

    /// [`writable`](Async::writable) for those who write `poll` functions.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Whole(io) => io.poll_writable(cx),
            Beside(handle, _) => handle.poll_writable(cx),
        }
    }

    /// Tries an operation again and again, waiting until it is readable in between.
    pub async fn read_with<R>(&self, mut op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        match &self.0 {
            Whole(io) => io.read_with(op).await,
            Beside(handle, io) => handle.read_with(|_| op(io)).await,
        }
    }

    /// Tries an operation again and again, waiting until it is writable in between.
    pub async fn write_with<R>(&self, mut op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        match &self.0 {
            Whole(io) => io.write_with(op).await,
            Beside(handle, io) => handle.write_with(|_| op(io)).await,
        }
    }
}

/// A future that has a name.
macro_rules! named {
    ($($name:ident<$($a:lifetime,)? T>($handle:ty): $poll:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug)]
        #[must_use = "futures do nothing unless you `.await` or poll them"]
        pub struct $name<$($a,)? T>($handle);

        impl<$($a,)? T> Future for $name<$($a,)? T> {
            type Output = io::Result<()>;

            fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.0.$poll(cx)
            }
        }
    )*};
}

named! {
    Readable<'a, T>(&'a Async<T>): poll_readable, "The future of [`Async::readable`].";
    Writable<'a, T>(&'a Async<T>): poll_writable, "The future of [`Async::writable`].";
    ReadableOwned<T>(Arc<Async<T>>): poll_readable, "The future of [`Async::readable_owned`].";
    WritableOwned<T>(Arc<Async<T>>): poll_writable, "The future of [`Async::writable_owned`].";
}

/// What Unix's descriptors and Windows' sockets have in common.
macro_rules! handles {
    ($as:ident $get:ident $borrowed:ident, $as_raw:ident $get_raw:ident $raw:ident) => {
        impl<T: $as> Async<T> {
            /// Makes a handle asynchronous.
            pub fn new(io: T) -> io::Result<Async<T>> {
                let handle = smol::Async::new(io.$get().try_clone_to_owned()?)?;
                Ok(Async(Beside(handle, io)))
            }

            /// The same for one that is in non-blocking mode already.
            pub fn new_nonblocking(io: T) -> io::Result<Async<T>> {
                let handle = smol::Async::new_nonblocking(io.$get().try_clone_to_owned()?)?;
                Ok(Async(Beside(handle, io)))
            }
        }

        impl<T: $as> $as for Async<T> {
            fn $get(&self) -> $borrowed<'_> {
                self.get_ref().$get()
            }
        }

        impl<T: $as_raw> $as_raw for Async<T> {
            fn $get_raw(&self) -> $raw {
                self.get_ref().$get_raw()
            }
        }

        impl<T: $as + From<Own>> TryFrom<Own> for Async<T> {
            type Error = io::Error;

            fn try_from(io: Own) -> io::Result<Async<T>> {
                Async::new(io.into())
            }
        }

        impl<T: Into<Own>> TryFrom<Async<T>> for Own {
            type Error = io::Error;

            fn try_from(io: Async<T>) -> io::Result<Own> {
                io.into_inner().map(Into::into)
            }
        }
    };
}

#[cfg(unix)]
handles!(AsFd as_fd BorrowedFd, AsRawFd as_raw_fd RawFd);
#[cfg(windows)]
handles!(AsSocket as_socket BorrowedSocket, AsRawSocket as_raw_socket RawSocket);

/// Sockets of std's and of ours, of which no duplicate is needed.
macro_rules! whole {
    ($($socket:ty),*) => {$(
        impl From<smol::Async<$socket>> for Async<$socket> {
            fn from(io: smol::Async<$socket>) -> Self {
                Async(Whole(io))
            }
        }

        impl TryFrom<$socket> for Async<$socket> {
            type Error = io::Error;

            fn try_from(socket: $socket) -> io::Result<Self> {
                Ok(smol::Async::new(socket)?.into())
            }
        }
    )*};
}

/// What listeners have in common.
macro_rules! listener {
    ($listener:ty, $stream:ty, $addr:ty) => {
        impl Async<$listener> {
            /// Waits for the next connection.
            pub async fn accept(&self) -> io::Result<(Async<$stream>, $addr)> {
                let (stream, addr) = match &self.0 {
                    Whole(listener) => listener.accept().await?,
                    Beside(..) => {
                        let (stream, addr) = self.read_with(|listener| listener.accept()).await?;
                        (smol::Async::new(stream)?, addr)
                    }
                };
                Ok((stream.into(), addr))
            }

            /// The connections, one after the other.
            pub fn incoming(&self) -> impl Stream<Item = io::Result<Async<$stream>>> + Send + '_ {
                futures_lite::stream::repeat(()).then(|()| async { Ok(self.accept().await?.0) })
            }
        }
    };
}

/// What sockets for datagrams have in common.
macro_rules! datagrams {
    ($socket:ty, $addr:ty) => {
        impl Async<$socket> {
            /// Receives one datagram and the address of its sender.
            pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.read_with(|socket| socket.recv_from(buf)).await
            }

            /// Receives one datagram from the peer it is connected to.
            pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.read_with(|socket| socket.recv(buf)).await
            }

            /// Sends one datagram to the peer it is connected to.
            pub async fn send(&self, buf: &[u8]) -> io::Result<usize> {
                self.write_with(|socket| socket.send(buf)).await
            }
        }
    };
}

whole!(TcpListener, TcpStream, UdpSocket);
listener!(TcpListener, TcpStream, SocketAddr);
datagrams!(UdpSocket, SocketAddr);

impl Async<TcpListener> {
    /// Listens on an address.
    pub fn bind<A: Into<SocketAddr>>(addr: A) -> io::Result<Self> {
        Ok(smol::Async::<TcpListener>::bind(addr.into())?.into())
    }
}

impl Async<TcpStream> {
    /// Connects to an address.
    pub async fn connect<A: Into<SocketAddr>>(addr: A) -> io::Result<Self> {
        Ok(smol::Async::<TcpStream>::connect(addr.into()).await?.into())
    }

    /// Looks at what there is to read without taking it.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|stream| stream.peek(buf)).await
    }
}

impl Async<UdpSocket> {
    /// Binds a socket to an address.
    pub fn bind<A: Into<SocketAddr>>(addr: A) -> io::Result<Self> {
        Ok(smol::Async::<UdpSocket>::bind(addr.into())?.into())
    }

    /// Sends one datagram to an address.
    pub async fn send_to<A: Into<SocketAddr>>(&self, buf: &[u8], addr: A) -> io::Result<usize> {
        let addr = addr.into();
        self.write_with(|socket| socket.send_to(buf, addr)).await
    }

    /// Looks at the next datagram without taking it.
    pub async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.read_with(|socket| socket.peek_from(buf)).await
    }

    /// Looks at the next datagram of the peer it is connected to without taking it.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|socket| socket.peek(buf)).await
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::path::Path;

    whole!(UnixListener, UnixStream, UnixDatagram);
    listener!(UnixListener, UnixStream, UnixAddr);
    datagrams!(UnixDatagram, UnixAddr);

    impl Async<UnixListener> {
        /// Listens on a path.
        pub fn bind<P: AsRef<Path>>(path: P) -> io::Result<Self> {
            Ok(smol::Async::<UnixListener>::bind(path)?.into())
        }
    }

    impl Async<UnixStream> {
        /// Connects to a path.
        pub async fn connect<P: AsRef<Path>>(path: P) -> io::Result<Self> {
            Ok(smol::Async::<UnixStream>::connect(path).await?.into())
        }

        /// Two streams that are connected to each other.
        pub fn pair() -> io::Result<(Self, Self)> {
            smol::Async::<UnixStream>::pair().map(|(a, b)| (a.into(), b.into()))
        }
    }

    impl Async<UnixDatagram> {
        /// Binds a socket to a path.
        pub fn bind<P: AsRef<Path>>(path: P) -> io::Result<Self> {
            Ok(smol::Async::<UnixDatagram>::bind(path)?.into())
        }

        /// A socket without an address.
        pub fn unbound() -> io::Result<Self> {
            Ok(smol::Async::<UnixDatagram>::unbound()?.into())
        }

        /// Two sockets that are connected to each other.
        pub fn pair() -> io::Result<(Self, Self)> {
            smol::Async::<UnixDatagram>::pair().map(|(a, b)| (a.into(), b.into()))
        }

        /// Sends one datagram to a path.
        pub async fn send_to<P: AsRef<Path>>(&self, buf: &[u8], path: P) -> io::Result<usize> {
            self.write_with(|socket| socket.send_to(buf, &path)).await
        }
    }
}

/// A type whose reads and writes do not drop or replace the handle.
///
/// # Safety
///
/// That promise, which is theirs. Here nothing depends on it: what the poller has is a duplicate.
/// The trait is `unsafe` because others say `unsafe impl`.
#[allow(unsafe_code)]
pub unsafe trait IoSafe {
    #[doc(hidden)]
    fn with_whole<R>(_: &smol::Async<Self>, _: impl FnOnce(&mut dyn ReadWrite) -> R) -> R
    where
        Self: Sized,
    {
        unreachable!("of those that are `Whole`, only std's streams are read and written")
    }
}

#[doc(hidden)]
pub trait ReadWrite: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ReadWrite for T {}

/// `unsafe impl`, for types whose promise is easy to see: they are std's.
macro_rules! io_safe {
    ($([$($generics:tt)*] $io:ty $({ $whole:ident })?;)*) => {$(
        #[allow(unsafe_code)]
        // SAFETY: std's reads and writes leave the handle alone.
        unsafe impl<$($generics)*> IoSafe for $io {
            $(fn with_whole<R>(
                $whole: &smol::Async<Self>,
                f: impl FnOnce(&mut dyn ReadWrite) -> R,
            ) -> R {
                f(&mut &*$whole)
            })?
        }
    )*};
}

io_safe! {
    [] TcpStream { io };
    [] std::fs::File;
    [] io::Stdin;
    [] io::Stdout;
    [] io::Stderr;
    [] io::StdinLock<'_>;
    [] io::StdoutLock<'_>;
    [] io::StderrLock<'_>;
    [] std::process::ChildStdin;
    [] std::process::ChildStdout;
    [] std::process::ChildStderr;
    [T: ?Sized] &T;
    [T: IoSafe + ?Sized] &mut T;
    [T: IoSafe + ?Sized] Box<T>;
    [T: IoSafe + Clone] std::borrow::Cow<'_, T>;
    [T: IoSafe + Read] io::BufReader<T>;
    [T: IoSafe + Write] io::BufWriter<T>;
    [T: IoSafe + Write] io::LineWriter<T>;
}

#[cfg(unix)]
io_safe! {
    [] UnixStream { io };
}

/// Tries until it does not say `WouldBlock`.
fn poll_io<R>(
    cx: &mut Context<'_>,
    mut op: impl FnMut() -> io::Result<R>,
    poll_ready: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
) -> Poll<io::Result<R>> {
    loop {
        match op() {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => ready!(poll_ready(cx))?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            result => return Poll::Ready(result),
        }
    }
}

/// A method of `AsyncRead` or `AsyncWrite`: through `&mut T`, or through `&T`.
macro_rules! method {
    ($method:ident => $op:ident($($arg:ident: $type:ty)?) -> $output:ty, $ready:ident, mut) => {
        fn $method(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            $($arg: $type)?
        ) -> Poll<io::Result<$output>> {
            match &mut self.0 {
                Whole(io) => T::with_whole(io, |io| Pin::new(io).$method(cx, $($arg)?)),
                Beside(handle, io) => poll_io(cx, || io.$op($($arg)?), |cx| handle.$ready(cx)),
            }
        }
    };
    ($method:ident => $op:ident($($arg:ident: $type:ty)?) -> $output:ty, $ready:ident, shared) => {
        fn $method(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            $($arg: $type)?
        ) -> Poll<io::Result<$output>> {
            match &self.0 {
                Whole(io) => Pin::new(&mut &*io).$method(cx, $($arg)?),
                Beside(handle, io) => {
                    let mut io = io;
                    poll_io(cx, || io.$op($($arg)?), |cx| handle.$ready(cx))
                }
            }
        }
    };
}

macro_rules! read_methods {
    ($way:tt) => {
        method!(poll_read => read(buf: &mut [u8]) -> usize, poll_readable, $way);
        method!(poll_read_vectored => read_vectored(bufs: &mut [IoSliceMut<'_>]) -> usize,
            poll_readable, $way);
    };
}

macro_rules! write_methods {
    ($way:tt) => {
        method!(poll_write => write(buf: &[u8]) -> usize, poll_writable, $way);
        method!(poll_write_vectored => write_vectored(bufs: &[IoSlice<'_>]) -> usize,
            poll_writable, $way);
        method!(poll_flush => flush() -> (), poll_writable, $way);

        /// Does not shut down a socket: so it is with theirs.
        fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(cx)
        }
    };
}

impl<T: IoSafe + Read> AsyncRead for Async<T> {
    read_methods!(mut);
}

impl<T: IoSafe + Write> AsyncWrite for Async<T> {
    write_methods!(mut);
}

impl<T> AsyncRead for &Async<T>
where
    for<'a> &'a T: Read,
{
    read_methods!(shared);
}

impl<T> AsyncWrite for &Async<T>
where
    for<'a> &'a T: Write,
{
    write_methods!(shared);
}
