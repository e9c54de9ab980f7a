//! Files: each operation is done when it says so, gives its own result, and moves the position exactly as far as it says.

mod common;

use common::{foreign_block_on, fresh_process, fresh_process_output, within};
use smol::{
    Async, block_on, future,
    io::{BufReader, BufWriter, SeekFrom},
    prelude::*,
    spawn, timeout,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, IoSlice, IoSliceMut, Read, Seek, Write},
    pin::pin,
    time::Duration,
};
use tempfile::tempdir;

#[test]
fn a_file_is_created_written_opened_and_read() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("file");
            let mut file = Async::<File>::create(&path).await.unwrap();
            file.write_all(b"hello ").await.unwrap();
            file.write_all(b"world").await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"hello world", "nothing was pending");
            // `create` does not read.
            assert!(file.read(&mut [0; 8]).await.is_err());
            let mut file = Async::<File>::open(&path).await.unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello world");
            // `open` does not write.
            assert!(file.write(b"x").await.is_err());
            assert_eq!(file.read(&mut [0; 8]).await.unwrap(), 0);
            // `create` empties.
            Async::<File>::create(&path).await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"");
            assert!(format!("{file:?}").contains("File"));
        });
    });
}

#[test]
fn errors_of_opening_are_those_of_std() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let missing = dir.path().join("missing");
            assert_eq!(
                Async::<File>::open(&missing).await.unwrap_err().kind(),
                ErrorKind::NotFound
            );
            assert_eq!(
                Async::<File>::create(missing.join("x")).await.unwrap_err().kind(),
                ErrorKind::NotFound
            );
            let error = Async::<File>::create(dir.path()).await.unwrap_err();
            assert_eq!(error.kind(), File::create(dir.path()).unwrap_err().kind());
            // A directory can be opened, but not read.
            if let Ok(mut std_dir) = File::open(dir.path()) {
                let expected = std_dir.read(&mut [0; 8]).unwrap_err();
                let mut directory = Async::<File>::open(dir.path()).await.unwrap();
                assert_eq!(directory.read(&mut [0; 8]).await.unwrap_err().kind(), expected.kind());
                assert!(directory.with(|dir| dir.metadata()).await.unwrap().is_dir());
            }
        });
    });
}

#[test]
fn a_file_of_std_can_be_adopted_used_and_taken_back() {
    within(10, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("log");
            fs::write(&path, "1\n").unwrap();
            let mut log = Async::from(OpenOptions::new().append(true).open(&path).unwrap());
            log.write_all(b"2\n").await.unwrap();
            log.flush().await.unwrap();
            let length =
                log.with(|file| file.metadata().map(|metadata| metadata.len())).await.unwrap();
            assert_eq!(length, 4);
            log.with(|file| file.sync_all()).await.unwrap();
            log.with(|file| file.set_len(1)).await.unwrap();
            assert_eq!(log.get_ref().metadata().unwrap().len(), 1);
            log.close().await.unwrap();
            let mut file: File = log.into_inner().unwrap();
            file.write_all(b"3").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"13");
        });
    });
}

// ---------- writing ----------

/// <https://github.com/smol-rs/smol/issues/306>
#[test]
fn what_was_written_is_in_the_file_without_a_flush() {
    within(60, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("file");
            for round in 0..500u32 {
                let data = vec![round as u8; 1 + fastrand::usize(0..20_000)];
                let mut file = Async::<File>::create(&path).await.unwrap();
                file.write_all(&data).await.unwrap();
                if round % 2 == 0 {
                    drop(file);
                }
                assert!(fs::read(&path).unwrap() == data, "round {round}");
            }
        });
    });
}

#[test]
fn a_write_counts_what_the_file_has() {
    within(30, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("file");
            let mut file = Async::<File>::create(&path).await.unwrap();
            let mut length = 0;
            for size in [1, 10, 4096, 100_000, 5_000_000] {
                let n = file.write(&vec![1; size]).await.unwrap();
                assert!(n > 0 && n <= size);
                length += n as u64;
                assert_eq!(fs::metadata(&path).unwrap().len(), length);
            }
            let n = file
                .write_vectored(&[IoSlice::new(b""), IoSlice::new(b"abc"), IoSlice::new(b"defg")])
                .await
                .unwrap();
            assert!(n > 0 && n <= 7);
            assert_eq!(fs::metadata(&path).unwrap().len(), length + n as u64);
            assert_eq!(file.write(&[]).await.unwrap(), 0);
            assert_eq!(file.write_vectored(&[]).await.unwrap(), 0);
        });
    });
}

#[test]
fn a_program_that_ends_right_after_a_write_has_written() {
    // The file is named by the one process and written by the other.
    const PATH: &str = "SMOL_TEST_PATH";
    let dir = std::env::var_os(PATH).is_none().then(|| tempdir().unwrap());
    let path = dir.as_ref().map(|dir| dir.path().join("file")).unwrap_or_default();
    let ended = fresh_process_output(10, &[(PATH, path.to_str().unwrap())], || {
        block_on(async {
            let mut file = Async::<File>::create(std::env::var_os(PATH).unwrap()).await.unwrap();
            file.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        });
        std::process::exit(0);
    });
    let ended = ended.unwrap();
    assert!(ended.status.success(), "{}", ended.output);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1_000_000);
}

/// <https://github.com/smol-rs/blocking/issues/70>
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_the_write_that_met_it() {
    within(20, || {
        block_on(async {
            let full = || {
                Async::from(OpenOptions::new().read(true).write(true).open("/dev/full").unwrap())
            };
            let mut file = full();
            for _ in 0..100 {
                let error = file.write(b"x").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                assert_eq!(
                    file.write_all(b"xyz").await.unwrap_err().kind(),
                    ErrorKind::StorageFull
                );
            }
            // An error is told once, by its own operation.
            file.flush().await.unwrap();
            assert_eq!(file.read(&mut [1; 4]).await.unwrap(), 4);
            let mut buffered = BufWriter::new(full());
            buffered.write_all(b"x").await.unwrap();
            assert_eq!(buffered.flush().await.unwrap_err().kind(), ErrorKind::StorageFull);
            assert_eq!(
                smol::io::copy(&b"abc"[..], full()).await.unwrap_err().kind(),
                ErrorKind::StorageFull
            );
        });
    });
}

/// <https://github.com/tokio-rs/tokio/issues/8291>
#[cfg(unix)]
#[test]
fn a_file_goes_on_after_an_operation_that_failed() {
    within(10, || {
        block_on(async {
            let file = tempfile::tempfile().unwrap();
            let mut file = Async::from(file);
            file.write_all(b"abc").await.unwrap();
            assert_eq!(
                file.seek(SeekFrom::Current(-10)).await.unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
            assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), 3);
            file.write_all(b"def").await.unwrap();
            assert_eq!(file.seek(SeekFrom::Start(0)).await.unwrap(), 0);
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "abcdef");
        });
    });
}

// ---------- reading and seeking ----------

#[test]
fn the_position_is_where_the_user_is() {
    within(20, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
            file.write_all(&data).await.unwrap();
            let mut position = file.seek(SeekFrom::Start(0)).await.unwrap();
            for _ in 0..100 {
                match fastrand::u8(0..4) {
                    0 => {
                        position = fastrand::u64(0..100_000);
                        assert_eq!(file.seek(SeekFrom::Start(position)).await.unwrap(), position);
                    }
                    1 => {
                        let back = fastrand::u64(0..=position.min(1000));
                        position -= back;
                        assert_eq!(
                            file.seek(SeekFrom::Current(-(back as i64))).await.unwrap(),
                            position
                        );
                    }
                    2 => {
                        let end = fastrand::u64(0..1000);
                        position = 100_000 - end;
                        assert_eq!(
                            file.seek(SeekFrom::End(-(end as i64))).await.unwrap(),
                            position
                        );
                    }
                    _ => {
                        let mut buffer = vec![0; fastrand::usize(1..5000)];
                        let n = file.read(&mut buffer).await.unwrap();
                        assert!(n > 0 || position >= 100_000);
                        assert!(buffer[..n] == data[position as usize..][..n]);
                        position += n as u64;
                    }
                }
                assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), position);
                // The kernel agrees: no read-ahead is hidden.
                assert_eq!({ file.get_ref() }.stream_position().unwrap(), position);
            }
        });
    });
}

#[test]
fn a_write_lands_where_the_last_read_ended() {
    within(10, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(b"0123456789").await.unwrap();
            file.rewind_to(0).await;
            file.read_exact(&mut [0; 3]).await.unwrap();
            file.write_all(b"XY").await.unwrap();
            file.read_exact(&mut [0; 1]).await.unwrap();
            file.write_all(b"Z").await.unwrap();
            file.rewind_to(0).await;
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "012XY5Z789");
        });
    });
}

trait RewindTo {
    async fn rewind_to(&mut self, position: u64);
}

impl RewindTo for Async<File> {
    async fn rewind_to(&mut self, position: u64) {
        assert_eq!(self.seek(SeekFrom::Start(position)).await.unwrap(), position);
    }
}

#[test]
fn a_shared_reference_reads_writes_and_seeks() {
    within(10, || {
        block_on(async {
            let file = Async::from(tempfile::tempfile().unwrap());
            let mut shared = &file;
            shared.write_all(b"abc").await.unwrap();
            assert_eq!(shared.seek(SeekFrom::Start(1)).await.unwrap(), 1);
            let mut text = String::new();
            shared.read_to_string(&mut text).await.unwrap();
            shared.flush().await.unwrap();
            assert_eq!(text, "bc");
        });
    });
}

#[test]
fn operations_of_no_bytes_and_with_many_buffers_work() {
    within(10, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(b"abcdef").await.unwrap();
            file.rewind_to(0).await;
            assert_eq!(file.read(&mut []).await.unwrap(), 0);
            assert_eq!(file.read_vectored(&mut []).await.unwrap(), 0);
            let (mut x, mut y) = ([0; 2], [0; 8]);
            let n = file
                .read_vectored(&mut [
                    IoSliceMut::new(&mut []),
                    IoSliceMut::new(&mut x),
                    IoSliceMut::new(&mut y),
                ])
                .await
                .unwrap();
            assert!(n > 0, "no end of file");
            assert_eq!(&x[..n.min(2)], &b"ab"[..n.min(2)]);
            assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), n as u64);
        });
    });
}

#[test]
fn lines_come_one_by_one() {
    within(10, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            let text: String = (0..1000).map(|i| format!("line {i}\n")).collect();
            file.write_all(text.as_bytes()).await.unwrap();
            file.rewind_to(0).await;
            let mut count = 0;
            let mut lines = BufReader::new(&file).lines();
            while let Some(line) = lines.next().await {
                assert_eq!(line.unwrap(), format!("line {count}"));
                count += 1;
            }
            assert_eq!(count, 1000);
        });
    });
}

#[test]
fn a_large_file_comes_back_as_it_was() {
    within(60, || {
        block_on(spawn(async {
            let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 13 % 251) as u8).collect();
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(&data).await.unwrap();
            file.rewind_to(0).await;
            let mut back = Vec::new();
            file.read_to_end(&mut back).await.unwrap();
            assert!(back == data);
        }));
    });
}

// ---------- sharing and giving up ----------

#[test]
fn clones_share_the_file_and_its_position() {
    within(20, || {
        block_on(async {
            let file = Async::from(tempfile::tempfile().unwrap());
            let tasks: Vec<_> = (0..10u8)
                .map(|i| {
                    let mut file = file.clone();
                    spawn(async move {
                        for _ in 0..20 {
                            file.write_all(&[i; 10]).await.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            let mut file = file;
            assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), 2000);
            file.rewind_to(0).await;
            let mut all = Vec::new();
            file.read_to_end(&mut all).await.unwrap();
            // Each write landed whole.
            assert!(
                all.len() == 2000
                    && all.chunks(10).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0]))
            );
            let clone = file.clone();
            file.into_inner().unwrap_err();
            clone.into_inner().unwrap();
        });
    });
}

#[test]
fn operations_that_are_given_up_leave_the_file_in_order() {
    within(60, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("file");
            let mut file = Async::<File>::create(&path).await.unwrap();
            for _ in 0..200 {
                // It may have happened or not, but whole or not at all, and before the next one.
                let _ = future::poll_once(file.write_all(b"0123456789")).await;
                file.write_all(b"abcdefghij").await.unwrap();
            }
            drop(file);
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.as_bytes()
                    .chunks(10)
                    .all(|chunk| chunk == b"0123456789" || chunk == b"abcdefghij")
            );
            assert_eq!(text.matches("abcdefghij").count(), 200);

            // Bytes of a read that nobody waited for are not lost.
            let mut file = Async::<File>::open(&path).await.unwrap();
            let mut back = Vec::new();
            loop {
                let mut buffer = [0; 7];
                match timeout(Duration::from_micros(fastrand::u64(0..100)), file.read(&mut buffer))
                    .await
                {
                    Ok(Ok(0)) => break,
                    Ok(Ok(n)) => back.extend_from_slice(&buffer[..n]),
                    Ok(Err(e)) => panic!("{e}"),
                    Err(_) => {}
                }
            }
            assert!(back == text.as_bytes());
        });
    });
}

#[test]
fn a_position_asked_for_after_a_read_was_given_up_is_the_user_s() {
    within(30, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(&[7; 1000]).await.unwrap();
            file.rewind_to(0).await;
            let mut seen = 0;
            for _ in 0..50 {
                let mut buffer = [0; 5];
                // Else nobody saw what it read, if it did.
                if let Some(n) = future::poll_once(file.read(&mut buffer)).await {
                    seen += n.unwrap() as u64;
                }
                assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), seen);
            }
        });
    });
}

#[test]
fn with_gives_what_the_closure_gives_and_passes_a_panic_on() {
    within(10, || {
        block_on(async {
            let file = Async::from(tempfile::tempfile().unwrap());
            assert_eq!(file.with(|_| 5).await, 5);
            // Not on this thread.
            let here = std::thread::current().id();
            assert!(file.with(move |_| std::thread::current().id() != here).await);
            let panicked = std::panic::AssertUnwindSafe(file.with(|_| panic!("mine")));
            let payload = panicked.catch_unwind().await.unwrap_err();
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"mine"));
            (&file).write_all(b"still good").await.unwrap();
            assert_eq!(file.with(|file| file.metadata().map(|m| m.len())).await.unwrap(), 10);
        });
    });
}

#[test]
fn files_work_under_a_foreign_block_on_and_many_at_once() {
    within(30, || {
        foreign_block_on(async {
            let dir = tempdir().unwrap();
            let tasks: Vec<_> = (0..50)
                .map(|i| {
                    let path = dir.path().join(i.to_string());
                    spawn(async move {
                        let mut file = Async::<File>::create(&path).await.unwrap();
                        file.write_all(path.to_str().unwrap().as_bytes()).await.unwrap();
                        let mut file = Async::<File>::open(&path).await.unwrap();
                        let mut text = String::new();
                        file.read_to_string(&mut text).await.unwrap();
                        assert_eq!(text, path.to_str().unwrap());
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
    });
}

/// A file that answers late, such as a FIFO without a writer, must not keep the program.
#[cfg(target_os = "linux")]
#[test]
fn opening_that_does_not_come_to_an_end_can_be_given_up_and_does_not_hold_up_the_exit() {
    fresh_process(10, &[], || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        block_on(async {
            timeout(Duration::from_millis(10), Async::<File>::open(&path)).await.unwrap_err();
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(b"others go on").await.unwrap();
        });
    });
}

/// FIFOs can be polled, if asked to be.
#[cfg(target_os = "linux")]
#[test]
fn a_fifo_can_be_registered_and_needs_no_pool() {
    fresh_process(10, &[], || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let fifo = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        block_on(async {
            let fifo = Async::new(fifo).unwrap();
            let mut reading = pin!(async { (&fifo).read(&mut [0; 8]).await });
            assert!(future::poll_once(reading.as_mut()).await.is_none());
            (&fifo).write_all(b"x").await.unwrap();
            assert_eq!(reading.await.unwrap(), 1);
            // Whatever cannot be polled for, `with` still does on the pool.
            assert!(fifo.clone().get_ref().metadata().is_ok());
            assert!((&fifo).seek(SeekFrom::Current(0)).await.is_err());
        });
    });
}
