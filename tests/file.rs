//! Files: each operation is done when it says so, gives its own result, and moves the position exactly as far as it says.

mod common;

use common::{foreign_block_on, fresh_process, fresh_process_output, wait_for_all, within};
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
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tempfile::tempdir;

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

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

// ---------- one file, many users ----------

/// The lines of a file, sorted; each of `writers` × `lines` must be there once.
fn assert_each_line_once(path: &std::path::Path, writers: usize, lines: usize) {
    let text = fs::read_to_string(path).unwrap();
    let mut found: Vec<_> = text.lines().collect();
    assert_eq!(found.len(), writers * lines, "so many lines are in the file");
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), writers * lines, "so many different lines are in the file");
    assert!(found.iter().all(|line| line.starts_with("writer ") && line.ends_with('.')));
}

fn appending(path: &std::path::Path) -> Async<File> {
    Async::from(OpenOptions::new().append(true).create(true).open(path).unwrap())
}

#[test]
fn each_line_of_two_hundred_clones_is_written_once() {
    within(120, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = appending(&path);
        let tasks: Vec<_> = (0..200)
            .map(|writer| {
                let mut file = file.clone();
                spawn(async move {
                    for line in 0..50 {
                        let line = format!("writer {writer:03} line {line:02}.\n");
                        file.write_all(line.as_bytes()).await.unwrap();
                        std::thread::sleep(Duration::from_micros(200));
                    }
                })
            })
            .collect();
        wait_for_all(tasks);
        assert_each_line_once(&path, 200, 50);
    });
}

#[test]
fn each_line_of_ten_thousand_tasks_that_share_one_handle_is_written_once() {
    within(120, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(appending(&path));
        let tasks: Vec<_> = (0..10_000)
            .map(|writer| {
                let file = file.clone();
                spawn(async move {
                    let line = format!("writer {writer:05}.\n");
                    (&*file).write_all(line.as_bytes()).await.unwrap();
                })
            })
            .collect();
        wait_for_all(tasks);
        assert_each_line_once(&path, 10_000, 1);
    });
}

#[test]
fn each_line_of_a_few_tasks_that_share_one_handle_is_written_once() {
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(appending(&path));
        let tasks: Vec<_> = (0..4)
            .map(|writer| {
                let file = file.clone();
                spawn(async move {
                    for line in 0..500 {
                        // Of different lengths, and some the beginning of others.
                        let line = format!("writer {writer} {}.\n", "x".repeat(line));
                        (&*file).write_all(line.as_bytes()).await.unwrap();
                        // Others have their turn in between.
                        future::yield_now().await;
                    }
                })
            })
            .collect();
        wait_for_all(tasks);
        assert_each_line_once(&path, 4, 500);
    });
}

#[test]
fn futures_of_one_task_that_share_a_handle_write_each_line_once() {
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = appending(&path);
        let writing = |writer: usize| {
            let file = &file;
            async move {
                for line in 0..100 {
                    let line = format!("writer {writer} line {line}.\n");
                    (&mut &*file).write_all(line.as_bytes()).await.unwrap();
                }
            }
        };
        block_on(async {
            let pair = |writer| future::zip(writing(writer), writing(writer + 1));
            future::zip(future::zip(pair(0), pair(2)), pair(4)).await;
        });
        assert_each_line_once(&path, 6, 100);
    });
}

/// Whoever is polled first comes for its next answer while the other's last one still lies there: that one's owner is alive.
#[test]
fn futures_of_one_task_that_are_polled_in_changing_order_write_each_line_once() {
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = appending(&path);
        let writing = |writer: usize| {
            let file = &file;
            Box::pin(async move {
                for line in 0..10_000 {
                    let line = format!("writer {writer} line {line}.\n");
                    (&mut &*file).write_all(line.as_bytes()).await.unwrap();
                }
            })
        };
        let mut writers = [Some(writing(0)), Some(writing(1)), Some(writing(2))];
        let mut random = fastrand::Rng::with_seed(7);
        block_on(future::poll_fn(|cx| {
            random.shuffle(&mut writers);
            for writer in &mut writers {
                writer.take_if(|writing| writing.as_mut().poll(cx).is_ready());
            }
            if writers.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_each_line_once(&path, 3, 10_000);
    });
}

/// `split` has one who reads and one who writes, both by `&mut`: neither may think that the other is gone.
#[test]
fn the_halves_of_a_file_that_was_split_do_not_take_each_other_s_answers() {
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).unwrap();
        let (mut reader, mut writer) = smol::io::split(Async::from(file));
        let reading = spawn(async move {
            loop {
                reader.read(&mut [0; 64]).await.unwrap();
                future::yield_now().await;
            }
        });
        block_on(async {
            for line in 0..2_000 {
                let line = format!("writer 0 line {line}.\n");
                writer.write_all(line.as_bytes()).await.unwrap();
            }
        });
        drop(reading);
        assert_each_line_once(&path, 1, 2_000);
    });
}

/// Whoever asks where the position is has not moved it, and knows nothing of those who write.
#[test]
fn a_write_by_a_reference_is_done_once_beside_one_who_asks_for_the_position() {
    within(60, || {
        block_on(async {
            for _ in 0..1_000 {
                let file = &Async::from(tempfile::tempfile().unwrap());
                let asking = async {
                    for _ in 0..3 {
                        { file }.seek(SeekFrom::Current(0)).await.unwrap();
                    }
                };
                let writing = async { { file }.write(b"x").await.unwrap() };
                assert_eq!(future::zip(asking, writing).await, ((), 1));
                assert_eq!(file.with(|file| file.metadata().unwrap().len()).await, 1);
            }
        });
    });
}

#[test]
fn a_seek_that_was_given_up_does_not_answer_for_the_next_one() {
    within(30, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(b"0123456789").await.unwrap();
            for _ in 0..100 {
                let _ = future::poll_once(file.seek(SeekFrom::Start(0))).await;
                file.read_exact(&mut [0; 5]).await.unwrap();
                assert_eq!(file.seek(SeekFrom::Start(0)).await.unwrap(), 0);
                let told = file.with(|mut file| file.stream_position()).await.unwrap();
                assert_eq!(told, 0);
            }
        });
    });
}

/// A read by somebody who is gone is under way: the one who reads now waits for it, and so does the one who writes.
#[cfg(unix)]
#[test]
fn both_halves_of_a_split_hear_of_the_end_of_an_operation_that_was_given_up() {
    within(30, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("fifo");
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let mut side = file.try_clone().unwrap();
            let mut file = Async::<File>::from(file);
            assert!(future::poll_once(file.read(&mut [0; 4])).await.is_none());
            file.with(|_| ()).await;
            let (mut reader, mut writer) = smol::io::split(file);
            // In this order; each has its own waker.
            let (mut one, mut two) = ([0; 4], pin!(writer.write(b"wxyz")));
            let mut reading = pin!(reader.read(&mut one));
            let (waker_of_reader, of_reader) = common::counting_waker();
            let (waker_of_writer, of_writer) = common::counting_waker();
            let context = &mut std::task::Context::from_waker(&waker_of_reader);
            assert!(reading.as_mut().poll(context).is_pending());
            let context = &mut std::task::Context::from_waker(&waker_of_writer);
            assert!(two.as_mut().poll(context).is_pending());
            side.write_all(b"abcd").unwrap();
            common::eventually(|| of_reader.count() > 0 && of_writer.count() > 0);
            assert_eq!(reading.await.unwrap(), 4);
        });
    });
}

/// Some are in the queue and come back as soon as they are served, others wait for room in it.
#[cfg(unix)]
#[test]
fn writers_that_wait_for_room_have_their_turn() {
    const WRITERS: usize = 40;
    within(120, || {
        let (mut reader, writer) = std::io::pipe().unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while reader.read(&mut buffer).unwrap() > 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let file = Async::from(File::from(std::os::fd::OwnedFd::from(writer)));
        let counts: Arc<[AtomicUsize; WRITERS]> =
            Arc::new([const { AtomicUsize::new(0) }; WRITERS]);
        let total = |counts: &[AtomicUsize; WRITERS]| -> usize {
            counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
        };
        let tasks: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (mut file, counts) = (file.clone(), counts.clone());
                spawn(async move {
                    while total(&counts) < 50 * WRITERS {
                        file.write(&[0; 1 << 16]).await.unwrap();
                        counts[writer].fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        wait_for_all(tasks);
        let fewest = counts.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap();
        assert!(fewest >= 20, "of fifty, one task made {fewest} writes: {counts:?}");
    });
}

#[test]
fn equal_writes_of_tasks_and_futures_that_share_a_handle_are_all_done() {
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(appending(&path));
        let writing = |file: Arc<Async<File>>| async move {
            for _ in 0..50 {
                (&*file).write_all(b"the same\n").await.unwrap();
            }
        };
        let tasks: Vec<_> = (0..20)
            .map(|_| spawn(future::zip(writing(file.clone()), writing(file.clone()))))
            .collect();
        wait_for_all(tasks);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| *line == "the same").count(), 20 * 2 * 50);
        assert_eq!(text.len(), 20 * 2 * 50 * 9);
    });
}

/// A future that is polled by one task first and by another one later is still one write.
#[test]
fn a_write_that_moves_to_another_task_is_done_once() {
    within(30, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(appending(&path));
        block_on(async {
            for line in 0..100 {
                let (file, line) = (file.clone(), format!("writer {line:02}.\n"));
                let mut writing =
                    Box::pin(async move { (&*file).write_all(line.as_bytes()).await });
                if future::poll_once(writing.as_mut()).await.is_none() {
                    spawn(writing).await.unwrap();
                }
            }
        });
        assert_each_line_once(&path, 100, 1);
    });
}

#[test]
fn a_write_that_is_tried_again_after_it_was_given_up_is_done_once() {
    within(30, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let path = dir.path().join("log");
            let (mut own, shared) = (appending(&path), appending(&path));
            for line in 0..100 {
                let line = format!("writer {line:02}.\n");
                let bytes = line.as_bytes();
                let n = match line.len() % 2 {
                    0 => {
                        let _ = future::poll_once(own.write(bytes)).await;
                        own.write(bytes).await
                    }
                    _ => {
                        let _ = future::poll_once((&shared).write(bytes)).await;
                        (&shared).write(bytes).await
                    }
                };
                assert_eq!(n.unwrap(), bytes.len());
            }
            assert_each_line_once(&path, 100, 1);
        });
    });
}

/// By clones and by one handle: what was waited for is there once, what was given up at most once.
#[test]
fn writers_that_give_up_now_and_then_write_nothing_twice() {
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Arc::new(appending(&path));
        let tasks: Vec<_> = (0..40)
            .map(|writer| {
                let (shared, mut own) = (file.clone(), (*file).clone());
                spawn(async move {
                    let mut done = Vec::new();
                    for line in 0..50 {
                        let line = format!("writer {writer} line {line}.\n");
                        let (gives_up, by_clone) = (fastrand::u8(0..3) == 0, fastrand::bool());
                        let writing = async {
                            match by_clone {
                                true => own.write_all(line.as_bytes()).await.unwrap(),
                                false => (&*shared).write_all(line.as_bytes()).await.unwrap(),
                            }
                        };
                        if gives_up {
                            let _ = timeout(Duration::from_micros(50), writing).await;
                        } else {
                            writing.await;
                            done.push(line);
                        }
                    }
                    own.flush().await.unwrap();
                    done
                })
            })
            .collect();
        let mut done = Vec::new();
        block_on(async {
            for task in tasks {
                done.extend(task.await);
            }
            (&*file).flush().await.unwrap(); // whatever is on its way is before it
        });
        let text = fs::read_to_string(&path).unwrap();
        let mut found: Vec<_> = text.split_inclusive('\n').collect();
        found.sort_unstable();
        assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "a line is there twice");
        assert!(done.iter().all(|line| found.binary_search(&line.as_str()).is_ok()));
    });
}

#[test]
fn all_that_is_left_is_read_behind_what_the_buffer_has() {
    within(30, || {
        block_on(async {
            let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
            let mut file = Async::from(tempfile::tempfile().unwrap());
            let mut back = Vec::new();
            assert_eq!(file.read_to_end(&mut back).await.unwrap(), 0);
            file.write_all(&data).await.unwrap();
            file.rewind_to(1_000).await;
            back = b"head".to_vec();
            assert_eq!(file.read_to_end(&mut back).await.unwrap(), data.len() - 1_000);
            assert_eq!(file.read_to_end(&mut back).await.unwrap(), 0);
            assert!(back.starts_with(b"head") && back[4..] == data[1_000..]);
            // What was read when it is given up is in the buffer, and nothing else.
            file.rewind_to(0).await;
            let mut start = Vec::new();
            let _ = future::poll_once(file.read_to_end(&mut start)).await;
            let position = file.seek(SeekFrom::Current(0)).await.unwrap();
            assert!(start == data[..position as usize]);
        });
    });
}

#[test]
fn a_write_of_a_dropped_future_does_not_answer_for_the_next_one() {
    within(30, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            for _ in 0..50 {
                file.rewind_to(0).await;
                // Gone, but on its way; then something else; then the same bytes once more.
                let _ = future::poll_once(file.write_all(b"aaa")).await;
                file.rewind_to(3).await;
                file.write_all(b"aaa").await.unwrap();
                assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), 6);
                file.with(|file| file.set_len(0)).await.unwrap();
            }
            let shared = &file;
            for _ in 0..50 {
                { shared }.seek(SeekFrom::Start(0)).await.unwrap();
                let _ = future::poll_once({ shared }.write_all(b"aaa")).await;
                { shared }.seek(SeekFrom::Start(3)).await.unwrap();
                { shared }.write_all(b"aaa").await.unwrap();
                assert_eq!({ shared }.seek(SeekFrom::Current(0)).await.unwrap(), 6);
                shared.with(|file| file.set_len(0)).await.unwrap();
            }
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn the_error_of_a_write_that_was_given_up_is_told_by_the_next_operation() {
    within(30, || {
        block_on(async {
            let full = || Async::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
            for _ in 0..20 {
                let mut file = full();
                // If it is not given up, it has told it itself.
                if future::poll_once(file.write(b"gone")).await.is_none() {
                    assert_eq!(file.flush().await.unwrap_err().kind(), ErrorKind::StorageFull);
                }
                file.flush().await.unwrap();
                if future::poll_once(file.write(b"gone")).await.is_none() {
                    let error = file.seek(SeekFrom::Start(0)).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::StorageFull);
                }
                file.seek(SeekFrom::Start(0)).await.unwrap();
                // Each of several futures is told its own.
                let (one, two) = (&mut &file, &mut &file);
                let (one, two) = future::zip(one.write(b"1"), two.write(b"22")).await;
                assert!(one.is_err() && two.is_err());
                // Here it is told by one that began after it had failed.
                if future::poll_once((&file).write(b"gone")).await.is_none() {
                    let told = (&file).flush().await.is_err() || (&file).flush().await.is_err();
                    assert!(told);
                }
                (&file).flush().await.unwrap();
            }
        });
    });
}

#[test]
fn each_byte_is_read_once_by_tasks_that_share_a_file() {
    within(60, || {
        let data: Vec<u8> = (0..40_000u32).flat_map(|i| (i as u16).to_be_bytes()).collect();
        let dir = tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, &data).unwrap();
        // What the pool reads, and on Linux what need not go there.
        for (pace, step) in [(0, 2), (1, 200)] {
            let file = Arc::new(block_on(Async::<File>::open(&path)).unwrap());
            let tasks: Vec<_> = (0..8)
                .map(|reader| {
                    let (shared, mut own) = (file.clone(), (*file).clone());
                    spawn(async move {
                        let mut seen = Vec::new();
                        let mut buffer = vec![0; step];
                        loop {
                            let n = match reader % 2 {
                                0 => (&*shared).read(&mut buffer).await.unwrap(),
                                _ => own.read(&mut buffer).await.unwrap(),
                            };
                            if n == 0 {
                                return seen;
                            }
                            assert_eq!(n % 2, 0);
                            let pairs = buffer[..n].chunks(2);
                            seen.extend(pairs.map(|pair| u16::from_be_bytes([pair[0], pair[1]])));
                            if pace > 0 {
                                future::yield_now().await;
                            }
                        }
                    })
                })
                .collect();
            let mut all = Vec::new();
            block_on(async {
                for task in tasks {
                    all.extend(task.await);
                }
            });
            all.sort_unstable();
            assert!(all.into_iter().eq(0..40_000));
        }
    });
}

#[test]
fn each_of_many_seeks_is_told_its_own_place() {
    within(60, || {
        let file = Arc::new(Async::from(tempfile::tempfile().unwrap()));
        let tasks: Vec<_> = (0..50u64)
            .map(|i| {
                let (shared, mut own) = (file.clone(), (*file).clone());
                spawn(async move {
                    for round in 0..20 {
                        let place = i * 1000 + round;
                        let to = SeekFrom::Start(place);
                        assert_eq!((&*shared).seek(to).await.unwrap(), place);
                        assert_eq!(own.seek(to).await.unwrap(), place);
                    }
                })
            })
            .collect();
        wait_for_all(tasks);
    });
}

#[test]
fn answers_that_nobody_came_for_do_not_pile_up() {
    fresh_process(60, &[], || {
        let dir = tempdir().unwrap();
        let mut file = appending(&dir.path().join("log"));
        let clone = file.clone();
        block_on(async {
            let mut given_up = async |rounds: usize| {
                for i in 0..rounds {
                    let line = vec![i as u8; 10_000];
                    let _ = future::poll_once(file.write(&line)).await;
                    let _ = future::poll_once((&clone).write(&line)).await;
                }
                file.flush().await.unwrap();
                (&clone).flush().await.unwrap();
                (&clone).write_all(b"x").await.unwrap();
            };
            given_up(50).await;
            let before = common::live_bytes();
            given_up(1000).await;
            let more = common::live_bytes() - before;
            assert!(more < 1_000_000, "{more} bytes were left");
        });
    });
}

// ---------- the position is the user's ----------

/// A file that is not in the page cache for sure, so that it is the pool that reads.
#[cfg(target_os = "linux")]
const COLD: &str = "/proc/self/environ";

/// Starts a read of a file, waits until the pool has done it, and drops it.
#[cfg(target_os = "linux")]
fn give_up_a_read(file: &mut Async<File>, size: usize) {
    common::give_up(file.read(&mut vec![0; size]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_that_was_given_up_has_not_moved_the_position_for_anybody() {
    within(30, || {
        block_on(async {
            let text = fs::read(COLD).unwrap();
            assert!(text.len() > 20, "the environment is empty");
            let mut file = Async::<File>::open(COLD).await.unwrap();
            for position in [0, 3] {
                file.rewind_to(position).await;
                give_up_a_read(&mut file, 1 << 20);
                let told = file.with(|mut file| file.stream_position()).await.unwrap();
                assert_eq!(told, position, "by `with`");
                assert_eq!(file.get_ref().stream_position().unwrap(), position, "by `get_ref`");
                let mut clone = file.clone();
                assert_eq!(clone.seek(SeekFrom::Current(0)).await.unwrap(), position);
                let mut start = [0; 5];
                clone.read_exact(&mut start).await.unwrap();
                assert_eq!(start, text[position as usize..][..5]);
                // The one who gave up has not lost its place among the others.
                file.read_exact(&mut start).await.unwrap();
                assert_eq!(start, text[position as usize + 5..][..5]);
            }
            give_up_a_read(&mut file, 1 << 20);
            let mut file = file.into_inner().unwrap();
            assert_eq!(file.stream_position().unwrap(), 13);
            let mut rest = Vec::new();
            file.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, text[13..]);
        });
    });
}

/// It was the end where the position was then.
#[cfg(target_os = "linux")]
#[test]
fn the_end_that_a_dropped_read_has_seen_is_no_end_elsewhere() {
    within(30, || {
        block_on(async {
            let mut file = Async::<File>::open(COLD).await.unwrap();
            let mut clone = file.clone();
            let first = fs::read(COLD).unwrap()[0];
            let mut byte = [0];
            for way in 0..3 {
                clone.read_to_end(&mut Vec::new()).await.unwrap();
                give_up_a_read(&mut file, 16);
                // Still at the end, for whoever asks there.
                assert_eq!(file.read(&mut byte).await.unwrap(), 0);
                give_up_a_read(&mut file, 16);
                match way {
                    0 => clone.rewind_to(0).await,
                    1 => _ = file.with(|mut file| file.rewind()).await,
                    _ => _ = file.get_ref().rewind(),
                }
                assert_eq!((file.read(&mut byte).await.unwrap(), byte[0]), (1, first), "{way}");
            }
        });
    });
}

/// What cannot go back keeps its bytes, and says so to whoever would lose them.
#[cfg(unix)]
#[test]
fn bytes_of_a_pipe_that_were_read_for_nobody_are_the_next_reader_s_or_an_error() {
    within(30, || {
        block_on(async {
            let pipe = || {
                let (reader, writer) = rustix::pipe::pipe().unwrap();
                (Async::from(File::from(reader)), File::from(writer))
            };
            let give_up = |file: &mut Async<File>, writer: &mut File| {
                let (waker, wakes) = common::counting_waker();
                let mut buffer = [0; 8];
                let mut reading = pin!(file.read(&mut buffer));
                let mut cx = std::task::Context::from_waker(&waker);
                assert!(reading.as_mut().poll(&mut cx).is_pending());
                writer.write_all(b"abcdef").unwrap();
                common::eventually(|| wakes.count() > 0);
            };
            let (mut file, mut writer) = pipe();
            give_up(&mut file, &mut writer);
            let mut clone = file.clone();
            let mut text = [0; 2];
            clone.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"ab");
            file.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"cd");
            drop(clone);
            file.into_inner().unwrap_err();

            let (mut file, mut writer) = pipe();
            give_up(&mut file, &mut writer);
            file.read_exact(&mut [0; 6]).await.unwrap();
            file.into_inner().unwrap();
        });
    });
}

#[test]
fn an_appending_file_is_read_and_written_as_std_does_it() {
    within(30, || {
        block_on(async {
            let dir = tempdir().unwrap();
            let open = |name: &str| {
                let path = dir.path().join(name);
                fs::write(&path, "0123456789").unwrap();
                OpenOptions::new().read(true).append(true).open(path).unwrap()
            };
            let (mut std_file, mut file) = (open("std"), Async::from(open("smol")));
            for round in 0..3 {
                let (mut expected, mut found) = ([0; 4], [0; 4]);
                Seek::seek(&mut std_file, SeekFrom::Start(round)).unwrap();
                file.rewind_to(round).await;
                Read::read_exact(&mut std_file, &mut expected).unwrap();
                file.read_exact(&mut found).await.unwrap();
                assert_eq!(expected, found);
                Write::write_all(&mut std_file, b"ab").unwrap();
                file.write_all(b"ab").await.unwrap();
                let expected = std_file.stream_position().unwrap();
                assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), expected);
                assert_eq!(file.read(&mut found).await.unwrap(), 0);
            }
            let length = file.with(|file| file.metadata().unwrap().len()).await;
            assert_eq!(length, 16);
        });
    });
}

/// Linux 5.9 and 5.10 may say 0 to a read that must not wait (preadv2(2)). strace plays such a
/// kernel. <https://github.com/tokio-rs/tokio/issues/3803>
#[cfg(target_os = "linux")]
#[test]
fn a_kernel_that_says_zero_before_the_end_is_not_believed() {
    const PLAYED: &str = "SMOL_TEST_STRACE";
    const NAME: &str = "a_kernel_that_says_zero_before_the_end_is_not_believed";
    if std::env::var_os(PLAYED).is_some() {
        return within(30, || {
            block_on(async {
                let dir = tempdir().unwrap();
                let path = dir.path().join("file");
                fs::write(&path, vec![7; 100_000]).unwrap();
                let mut file = Async::<File>::open(&path).await.unwrap();
                let mut back = Vec::new();
                assert_eq!(file.read_to_end(&mut back).await.unwrap(), 100_000);
                assert!(back == [7; 100_000]);
                assert_eq!(file.read(&mut [0; 8]).await.unwrap(), 0);
            });
        });
    }
    let played = std::process::Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "trace=preadv2", "-e", "inject=preadv2:retval=0"])
        .arg(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(PLAYED, "1")
        .output();
    match played {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            // Some containers forbid it.
            assert!(output.status.success() || text.contains("ptrace"), "{text}");
        }
        Err(error) => println!("not tried, there is no strace here: {error}"),
    }
}

// ---------- what it takes ----------

/// One poll may not take a file at once: others have their turn after some megabytes.
#[test]
fn a_large_cached_read_lets_others_run_in_between() {
    const SIZE: usize = 64 << 20;
    within(60, || {
        let dir = tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![1; SIZE]).unwrap();
        block_on(async {
            let mut file = Async::<File>::open(&path).await.unwrap();
            let mut buffer = vec![0; SIZE];
            let mut turns = 0;
            let others = async {
                loop {
                    turns += 1;
                    future::yield_now().await;
                }
            };
            future::or(async { file.read_exact(&mut buffer).await.unwrap() }, others).await;
            assert!(turns >= SIZE >> 23, "the others had {turns} turns");
        });
    });
}

#[cfg(target_os = "linux")]
#[test]
fn files_that_are_open_and_idle_hold_no_large_buffers() {
    fresh_process(30, &[], || {
        block_on(async {
            let mut files = Vec::new();
            let before = common::live_bytes();
            for _ in 0..20 {
                let mut file = Async::<File>::open(COLD).await.unwrap();
                let mut buffer = vec![0; 1 << 20];
                file.read(&mut buffer).await.unwrap();
                files.push(file);
            }
            let held = (common::live_bytes() - before) / 20;
            assert!(held < 20_000, "{held} bytes for each");
        });
    });
}

#[test]
fn many_slices_are_written_at_once() {
    within(30, || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            let slices = [&b""[..], b"abc", b"", b"defg", b"h"].map(IoSlice::new);
            assert_eq!(file.write_vectored(&slices).await.unwrap(), 8);
            assert_eq!((&file).write_vectored(&slices[1..]).await.unwrap(), 8);
            let large = vec![b'x'; 3_000_000];
            let slices = [IoSlice::new(b"head"), IoSlice::new(&large)];
            let n = file.write_vectored(&slices).await.unwrap();
            assert!(n > 4, "more than the first slice");
            file.rewind_to(0).await;
            let mut text = Vec::new();
            file.read_to_end(&mut text).await.unwrap();
            assert_eq!(text.len(), 16 + n);
            assert!(text.starts_with(b"abcdefghabcdefghheadxx"));
        });
    });
}

// ---------- ways back ----------

/// Runs `cat`, from `input`.
#[cfg(unix)]
fn cat(input: std::process::Stdio) -> Async<std::process::Child> {
    let mut command = std::process::Command::new("cat");
    Async::<std::process::Child>::spawn(command.stdin(input).stdout(std::process::Stdio::piped()))
        .unwrap()
}

#[cfg(unix)]
#[test]
fn the_output_of_one_child_is_the_input_of_the_next() {
    use std::process::Stdio;
    within(30, || {
        block_on(async {
            let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
            let first = cat(Stdio::piped());
            let mut input = first.take_stdin().unwrap();
            let second = cat(Stdio::try_from(first.take_stdout().unwrap()).unwrap());
            let (_, output) = future::zip(
                async {
                    // In pieces, so that the second one finds its input empty.
                    for piece in data.chunks(100_000) {
                        input.write_all(piece).await.unwrap();
                        smol::Timer::after(Duration::from_millis(1)).await;
                    }
                    drop(input);
                },
                second.output(),
            )
            .await;
            let output = output.unwrap();
            assert!(output.status.success());
            assert!(output.stdout == data);
            assert!(first.status().await.unwrap().success());
        });
    });
}

#[cfg(unix)]
#[test]
fn a_handle_that_is_taken_back_blocks_again_and_a_clone_forbids_it() {
    use std::os::{fd::OwnedFd, unix::net::UnixStream};
    use std::process::Stdio;
    within(30, || {
        let is_nonblocking = |fd: &OwnedFd| {
            rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK)
        };
        let (one, two) = UnixStream::pair().unwrap();
        let one = Async::new(one).unwrap();
        let clone = one.clone();
        let error = OwnedFd::try_from(one).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        let fd = OwnedFd::try_from(clone).unwrap();
        assert!(!is_nonblocking(&fd));
        drop(two);
        assert_eq!(File::from(fd).read(&mut [0; 1]).unwrap(), 0);

        let file = Async::from(tempfile::tempfile().unwrap());
        let clone = file.clone();
        assert_eq!(Stdio::try_from(clone).unwrap_err().kind(), ErrorKind::ResourceBusy);
        assert!(!is_nonblocking(&OwnedFd::try_from(file).unwrap()));
    });
}
