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
use crate::row::{ALL, Report, Row};
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
files!(
    AsyncStd,
    futures_lite,
    async_std::fs::File,
    async_std::fs::read::<PathBuf>
);

async fn contents(path: PathBuf) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = smol::Async::<File>::open(path).await?;
    futures_lite::AsyncReadExt::read_to_end(&mut file, &mut bytes).await?;
    Ok(bytes)
}

/// Where a row's files are, until it is over.
fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    (directory, path)
}

/// Reads `n` MiB in pieces.
fn read(runtime: &str, n: u64, piece: usize) -> Report {
    let (_directory, path) = directory();
    let mut file = File::create(&path).unwrap();
    for _ in 0..n.min(LARGEST) {
        file.write_all(&BULK).unwrap();
    }
    drop(file);
    let elapsed = each!(runtime,
    raw => timed(|| {
        let mut left = n * MIB;
        while left > 0 {
            left -= read_raw(&path, piece, left);
        }
    }),
    R => inside::<R, _>(async move {
        let start = Instant::now();
        let mut left = n * MIB;
        while left > 0 {
            left -= read_file::<R>(&path, piece, left).await;
        }
        start.elapsed()
    }));
    Report::time(elapsed, n)
}

/// Reads a file of bulk data to its end, or so many bytes; says how many it was.
async fn read_file<R: Files>(path: &Path, piece: usize, limit: u64) -> u64 {
    let mut buf = vec![0; piece];
    let mut file = R::open(path).await.unwrap();
    let mut position = 0;
    while position < limit {
        let read = file.read(&mut buf).await.unwrap();
        if read == 0 {
            break;
        }
        check(&buf[..read], position);
        position += read as u64;
    }
    position
}

fn read_raw(path: &Path, piece: usize, limit: u64) -> u64 {
    let mut buf = vec![0; piece];
    let mut file = File::open(path).unwrap();
    let mut position = 0;
    while position < limit {
        let read = file.read(&mut buf).unwrap();
        if read == 0 {
            break;
        }
        check(&buf[..read], position);
        position += read as u64;
    }
    position
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
    let bytes = |number: u64| [number as u8; SMALL];
    let paths: Vec<PathBuf> = (0..n)
        .map(|number| directory.path().join(number.to_string()))
        .collect();
    for (number, path) in (0..).zip(&paths) {
        fs::write(path, bytes(number)).unwrap();
    }
    let elapsed = each!(runtime,
    raw => timed(|| for (number, path) in (0..).zip(paths) {
        assert_eq!(fs::read(path).unwrap(), bytes(number));
    }),
    R => inside::<R, _>(async move {
        let start = Instant::now();
        for (number, path) in (0..).zip(paths) {
            assert_eq!(R::contents(path).await.unwrap(), bytes(number));
        }
        start.elapsed()
    }));
    Report::time(elapsed, n)
}

/// Writes `n` MiB in pieces, and reads them back.
fn write_back(runtime: &str, n: u64) -> Report {
    let (_directory, path) = directory();
    let pieces = move || (0..n).flat_map(move |_| BULK.chunks(64 * KIB));
    let elapsed = each!(runtime,
    raw => timed(|| {
        let mut file = File::create(&path).unwrap();
        for piece in pieces() {
            file.write_all(piece).unwrap();
        }
        assert_eq!(read_raw(&path, 64 * KIB, u64::MAX), n * MIB);
    }),
    R => inside::<R, _>(async move {
        let start = Instant::now();
        let mut file = R::create(&path).await.unwrap();
        for piece in pieces() {
            file.write_all(piece).await.unwrap();
        }
        R::flush(file).await.unwrap();
        assert_eq!(read_file::<R>(&path, 64 * KIB, u64::MAX).await, n * MIB);
        start.elapsed()
    }));
    Report::time(elapsed, n)
}

const READ_64K: &str =
    "1 MiB of a file, read in pieces of 64 KiB (1 GiB in all; 64 MiB in quick mode)";
const READ_SMALL: &str = "one of 10,000 files of 1 kB (quick mode: 1,000) opened, read, closed";

pub const ROWS: &[Row] = &[
    Row::new("fs_read_1g", READ_64K, (64, 1_024), ALL, |runtime, n| {
        read(runtime, n, 64 * KIB)
    }),
    Row::new(
        "fs_read_1m",
        "the same in pieces of 1 MiB",
        (64, 1_024),
        ALL,
        |runtime, n| read(runtime, n, MIB as usize),
    ),
    Row::new("fs_small", READ_SMALL, (1_000, 10_000), ALL, small),
    Row::new(
        "fs_write_back",
        "1 MiB of 64 written in pieces of 64 KiB, and read back",
        (16, 64),
        ALL,
        write_back,
    ),
    Row::new("fs_read_1cpu", READ_64K, (64, 1_024), ALL, |runtime, n| {
        read(runtime, n, 64 * KIB)
    })
    .one_cpu(),
    Row::new("fs_small_1cpu", READ_SMALL, (1_000, 10_000), ALL, small).one_cpu(),
];
