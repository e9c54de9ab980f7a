//! The few lines between hyper 1, which brings I/O traits of its own, and every stream that speaks
//! those of futures-io.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use smol::prelude::*;
use smol::{io, ready};

thread_local! {
    /// hyper's own buffer is not initialized, and without `unsafe` it can only be copied into. From
    /// here: one for each thread costs idle connections no memory, and no read the time to zero it.
    static BYTES: RefCell<[u8; 16 * 1024]> = const { RefCell::new([0; 16 * 1024]) };
}

/// A stream as hyper wants it.
#[derive(Debug)]
pub(crate) struct HyperIo<T>(pub(crate) T);

impl<T: AsyncRead + Unpin> Read for HyperIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        BYTES.with_borrow_mut(|bytes| {
            let limit = bytes.len().min(buf.remaining());
            let n = ready!(Pin::new(&mut self.0).poll_read(cx, &mut bytes[..limit]))?;
            buf.put_slice(&bytes[..n]);
            Poll::Ready(Ok(()))
        })
    }
}

impl<T: AsyncWrite + Unpin> Write for HyperIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
