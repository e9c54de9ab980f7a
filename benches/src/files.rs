//! Files, all of them in the kernel's page cache.

use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io as tokio_io;

use crate::client::{BULK, bulk_byte};
use crate::each;
use crate::net::{Stream, streams};
use crate::row::{ALL, Report, Row, best, best_of_five};
use crate::runtimes::{AsyncStd, Ours, Runtime, Smol2, Tokio, TokioCt, inside};

const KIB: usize = 1024;
const MIB: u64 = 1 << 20;
/// The largest file in MiB; to read more than that is to read it again.
const LARGEST: u64 = 256;
/// Bytes of a small file.
const SMALL: usize = 1_000;

streams!(futures_lite: smol::Async<File>, smol2::fs::File, async_std::fs::File);
streams!(tokio_io: tokio::fs::File);

/// The files of a runtime.
trait Files: Runtime {
    type File: Stream;
    fn open(path: &Path) -> impl Future<Output = io::Result<Self::File>> + Send;
    fn create(path: &Path) -> impl Future<Output = io::Result<Self::File>> + Send;
    /// Waits until the kernel has all that was written.
    fn flush(file: Self::File) -> impl Future<Output = io::Result<()>> + Send;
    /// A whole file, in the quickest way that the runtime knows.
    fn contents(path: PathBuf) -> impl Future<Output = io::Result<Vec<u8>>> + Send;
}

macro_rules! files {
    ($runtime:ident, $traits:ident, $file:ty, $contents:expr) => {
        impl Files for $runtime {
            type File = $file;
            async fn open(path: &Path) -> io::Result<Self::File> {
                <$file>::open(path).await
            }
            async fn create(path: &Path) -> io::Result<Self::File> {
                <$file>::create(path).await
            }
            async fn flush(mut file: Self::File) -> io::Result<()> {
                $traits::AsyncWriteExt::flush(&mut file).await
            }
            async fn contents(path: PathBuf) -> io::Result<Vec<u8>> {
                $contents(path).await
            }
        }
    };
}

files!(Ours, futures_lite, smol::Async<File>, contents);
files!(Tokio, tokio_io, tokio::fs::File, tokio::fs::read);
files!(TokioCt, tokio_io, tokio::fs::File, tokio::fs::read);
files!(Smol2, futures_lite, smol2::fs::File, smol2::fs::read);
files!(AsyncStd, futures_lite, async_std::fs::File, async_std::fs::read::<PathBuf>);

/// What the documentation says to do with small files, and what the peers' functions do inside.
async fn contents(path: PathBuf) -> io::Result<Vec<u8>> {
    smol::unblock(|| fs::read(path)).await
}

/// Where a row's files are, until it is over.
fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    (directory, path)
}

/// Reads `n` MiB in pieces: a file four times, and again if it would be too large.
fn read(runtime: &str, n: u64, piece: usize) -> Report {
    let (_directory, path) = directory();
    let size = (n / 4).clamp(1, LARGEST);
    let mut file = File::create(&path).unwrap();
    for _ in 0..size {
        file.write_all(&BULK).unwrap();
    }
    drop(file);
    best(n, size, |n| {
        let path = path.clone();
        each!(runtime,
            raw => timed(|| read_raw(&path, piece, n * MIB)),
            R => inside::<R, _>(async move {
                let start = Instant::now();
                read_file::<R>(&path, piece, n * MIB).await;
                start.elapsed()
            })
        )
    })
}

/// Reads a file of bulk data, which has that many bytes.
async fn read_file<R: Files>(path: &Path, piece: usize, length: u64) {
    let mut buf = vec![0; piece];
    let mut file = R::open(path).await.unwrap();
    let mut position = 0;
    loop {
        let read = file.read(&mut buf).await.unwrap();
        if read == 0 {
            break;
        }
        check(&buf[..read], position);
        position += read as u64;
    }
    assert_eq!(position, length);
}

fn read_raw(path: &Path, piece: usize, length: u64) {
    let mut buf = vec![0; piece];
    let mut file = File::open(path).unwrap();
    let mut position = 0;
    loop {
        let read = file.read(&mut buf).unwrap();
        if read == 0 {
            break;
        }
        check(&buf[..read], position);
        position += read as u64;
    }
    assert_eq!(position, length);
}

/// The first and the last byte of each page are what was written there.
fn check(bytes: &[u8], position: u64) {
    for (number, page) in bytes.chunks(4 * KIB).enumerate() {
        let first = position as usize + number * 4 * KIB;
        assert_eq!(page[0], bulk_byte(first));
        assert_eq!(page[page.len() - 1], bulk_byte(first + page.len() - 1));
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Reads `n` small files.
fn small(runtime: &str, n: u64) -> Report {
    let (directory, _) = directory();
    let path = move |number: u64| directory.path().join(number.to_string());
    let bytes = |number: u64| [number as u8; SMALL];
    (0..n).for_each(|number| fs::write(path(number), bytes(number)).unwrap());
    let mut numbers = 0..n;
    best_of_five(n, |n| {
        let files: Vec<_> =
            numbers.by_ref().take(n as usize).map(|number| (path(number), bytes(number))).collect();
        each!(runtime,
            raw => timed(|| for (path, bytes) in files {
                assert_eq!(fs::read(path).unwrap(), bytes);
            }),
            R => inside::<R, _>(async move {
                let start = Instant::now();
                for (path, bytes) in files {
                    assert_eq!(R::contents(path).await.unwrap(), bytes);
                }
                start.elapsed()
            })
        )
    })
}

/// Writes `n` MiB in pieces, as files of that size, and reads them back.
fn write_back(runtime: &str, n: u64, size: u64) -> Report {
    let (_directory, path) = directory();
    best(n, size, |n| {
        let path = path.clone();
        let pieces = (0..n).flat_map(|_| BULK.chunks(64 * KIB));
        each!(runtime,
            raw => timed(|| {
                let mut file = File::create(&path).unwrap();
                for piece in pieces {
                    file.write_all(piece).unwrap();
                }
                read_raw(&path, 64 * KIB, n * MIB);
            }),
            R => inside::<R, _>(async move {
                let start = Instant::now();
                let mut file = R::create(&path).await.unwrap();
                for piece in pieces {
                    file.write_all(piece).await.unwrap();
                }
                R::flush(file).await.unwrap();
                read_file::<R>(&path, 64 * KIB, n * MIB).await;
                start.elapsed()
            })
        )
    })
}

const READ_64K: &str =
    "1 MiB of a file, read in pieces of 64 KiB (1 GiB in all; 64 MiB in quick mode)";
const READ_SMALL: &str = "one of 10,000 files of 1 kB (quick mode: 1,000) opened, read, closed";

pub const ROWS: &[Row] = &[
    Row::new("fs_read_1g", READ_64K, (64, 1_024), ALL, |runtime, n| read(runtime, n, 64 * KIB)),
    Row::new("fs_read_1m", "the same in pieces of 1 MiB", (64, 1_024), ALL, |runtime, n| {
        read(runtime, n, MIB as usize)
    }),
    Row::new("fs_small", READ_SMALL, (1_000, 10_000), ALL, small),
    Row::new(
        "fs_write_back",
        "1 MiB of 64 (quick mode: 8) written in pieces of 64 KiB, and read back",
        (24, 256),
        ALL,
        |runtime, n| write_back(runtime, n, if n < 256 { 8 } else { 64 }),
    ),
    Row::new("fs_read_1cpu", READ_64K, (64, 1_024), ALL, |runtime, n| read(runtime, n, 64 * KIB))
        .one_cpu(),
    Row::new("fs_small_1cpu", READ_SMALL, (1_000, 10_000), ALL, small).one_cpu(),
];
