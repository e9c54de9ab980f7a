//! Attacks on files with random programs: one user who gives up operations, compared with a model; and many who share a
//! file, of whom each has its lines written once.

mod common;

use common::{wait_for_all, within};
use fastrand::Rng;
use smol::{Async, block_on, future, io::SeekFrom, prelude::*, spawn};
use std::{
    collections::BTreeSet,
    fs::File,
    io::Seek,
    path::Path,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

/// What a file may be like, after operations that were given up and may have been done or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    content: Vec<u8>,
    position: usize,
}

impl State {
    fn write(mut self, data: &[u8]) -> State {
        let end = self.position + data.len();
        self.content.resize(self.content.len().max(end), 0);
        self.content[self.position..end].copy_from_slice(data);
        State { position: end, ..self }
    }

    /// `None`: before the beginning.
    fn seek(self, to: SeekFrom) -> Option<State> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (0, at as i64),
            SeekFrom::Current(by) => (self.position as i64, by),
            SeekFrom::End(by) => (self.content.len() as i64, by),
        };
        let position = usize::try_from(base + by).ok()?;
        Some(State { position, ..self })
    }
}

/// Polls a future to its end, or sometimes only once or twice. Between two polls the pool has some time, or none.
async fn some_polls<T>(random: &mut Rng, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let polls = if random.u8(..3) == 0 { random.usize(1..3) } else { usize::MAX };
    for _ in 0..polls {
        if let Some(output) = future::poll_once(future.as_mut()).await {
            return Some(output);
        }
        match random.u8(..3) {
            0 => future::yield_now().await,
            1 => std::thread::sleep(Duration::from_micros(random.u64(..200))),
            _ => common::sleep(Duration::from_micros(random.u64(..200))).await,
        }
    }
    None
}

fn bytes(random: &mut Rng, next: &mut u8) -> Vec<u8> {
    let mut data = vec![0; random.usize(1..8)];
    for byte in &mut data {
        *next = next.wrapping_add(1);
        *byte = *next;
    }
    data
}

fn place(random: &mut Rng) -> SeekFrom {
    match random.u8(..5) {
        0 => SeekFrom::Start(random.u64(..20)),
        1 => SeekFrom::End(random.i64(-6..3)),
        2 => SeekFrom::Current(random.i64(-4..5)),
        _ => SeekFrom::Current(0),
    }
}

/// One random program: after each operation, those states are left that explain what it has told.
async fn one_user(seed: u64, file: File) {
    let random = &mut Rng::with_seed(seed);
    let mut file = Async::from(file);
    let mut states = BTreeSet::from([State { content: Vec::new(), position: 0 }]);
    let mut next = 0;
    // What was given up last, if it can be tried again; and whether anything was since one was done.
    let (mut write, mut seek, mut is_open) = (None::<Vec<u8>>, None::<SeekFrom>, false);
    let mut story = Vec::new();
    for _ in 0..30 {
        let before = states.clone();
        let and_done = |done: BTreeSet<State>| done.union(&before).cloned().collect();
        let told;
        match random.u8(..9) {
            0..=2 => {
                (write, seek) = (None, None);
                let mut buffer = vec![0; random.usize(1..10)];
                let read = some_polls(random, file.read(&mut buffer)).await;
                told = format!("read {read:?} {buffer:?}");
                is_open &= read.is_none();
                // (An error is that of a seek that was given up.)
                if let Some(Ok(read)) = read {
                    let got = &buffer[..read];
                    states.retain(|state| {
                        let rest = state.content.get(state.position..).unwrap_or_default();
                        rest.starts_with(got) && (!got.is_empty() || rest.is_empty())
                    });
                    let moved =
                        |state: State| State { position: state.position + got.len(), ..state };
                    states = states.into_iter().map(moved).collect();
                }
            }
            3..=5 => {
                seek = None;
                let again = write.take().filter(|_| random.bool());
                let was_given_up = again.is_some();
                let data = again.unwrap_or_else(|| bytes(random, &mut next));
                let written = some_polls(random, file.write(&data)).await;
                told = format!("write {data:?} {written:?}, again: {was_given_up}");
                let is_there = |state: &State| {
                    let start = state.position.checked_sub(data.len());
                    start.is_some_and(|start| {
                        state.content.get(start..state.position) == Some(&data)
                    })
                };
                // The one that was given up may have been done: then it is not done once more.
                let done = before.iter().cloned().map(|state| match was_given_up {
                    true if is_there(&state) => state,
                    _ => state.write(&data),
                });
                states = match &written {
                    Some(Ok(written)) => {
                        assert_eq!(*written, data.len());
                        done.collect()
                    }
                    // That of a seek that was given up.
                    Some(Err(_)) => before.clone(),
                    None => and_done(done.collect()),
                };
                is_open = written.is_none();
                write = is_open.then_some(data);
            }
            6 | 7 => {
                write = None;
                // (A relative one that is tried again is that one; here it is another.)
                let mut to = place(random);
                while seek == Some(to) && matches!(to, SeekFrom::Current(_)) {
                    to = place(random);
                }
                let sought = some_polls(random, file.seek(to)).await;
                told = format!("seek {to:?} {sought:?}");
                let done = before.iter().cloned().filter_map(|state| state.seek(to));
                match &sought {
                    Some(Ok(at)) => {
                        states = done.filter(|state| state.position as u64 == *at).collect();
                    }
                    // Perhaps that of one that was given up; then this one was not done.
                    Some(Err(_)) => {}
                    None => states = and_done(done.collect()),
                }
                is_open = !matches!(sought, Some(Ok(_)));
                seek = is_open.then_some(to);
            }
            _ => {
                let found = file.with(|mut file| file.stream_position().unwrap() as usize).await;
                told = format!("with: at {found}");
                // What was given up may still be on its way.
                if !is_open {
                    states.retain(|state| state.position == found);
                }
                // By `&`: who used it by `&mut` is gone, and so is its write.
                write = None;
            }
        }
        story.push(told);
        assert!(!states.is_empty(), "seed {seed}: {story:#?} after {before:?}");
    }
    // A flush comes after all that was given up, and tells what of it has failed.
    let _ = file.flush().await;
    let position = file.get_ref().stream_position().unwrap() as usize;
    file.get_ref().rewind().unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut { file.get_ref() }, &mut content).unwrap();
    let state = State { content, position };
    assert!(states.contains(&state), "seed {seed}: {story:#?}: {state:?} is none of {states:?}");
}

#[test]
fn random_operations_of_one_user_some_of_them_given_up_do_what_they_tell() {
    within(120, || {
        // In memory nothing can be read at once, so that all goes through the pool.
        let memory = Path::new("/dev/shm");
        for seed in 0..600 {
            let file = match seed % 2 {
                0 if memory.is_dir() => tempfile::tempfile_in(memory).unwrap(),
                _ => tempfile::tempfile().unwrap(),
            };
            block_on(one_user(seed, file));
        }
    });
}

type Writer<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Writes some lines, and does other things that leave a file's end where it is.
async fn write_lines(mut file: &Async<File>, seed: u64, told: &Mutex<Vec<String>>) {
    let mut random = Rng::with_seed(seed);
    for line in 0..10 {
        let line = match random.u8(..4) {
            0 => "the same\n".to_string(),
            _ => format!("{seed} {line} {}\n", "x".repeat(random.usize(..40))),
        };
        assert_eq!(file.write(line.as_bytes()).await.unwrap(), line.len());
        told.lock().unwrap().push(line);
        match random.u8(..7) {
            0 => _ = file.seek(SeekFrom::Current(0)).await.unwrap(),
            1 => file.flush().await.unwrap(),
            2 => _ = file.with(|file| file.metadata().unwrap().len()).await,
            3 => common::sleep(Duration::from_micros(random.u64(..200))).await,
            4 => _ = future::poll_once(file.read(&mut [0; 16])).await,
            5 => _ = file.read(&mut [0; 16]).await.unwrap(),
            _ => {}
        }
    }
}

/// Polls them in another order each time, and leaves some out, until all are done.
async fn in_any_order(mut random: Rng, mut writers: Vec<Writer<'_>>) {
    future::poll_fn(move |cx| {
        random.shuffle(&mut writers);
        let mut leaves_out = false;
        writers.retain_mut(|writer| {
            let is_out = random.u8(..4) == 0;
            leaves_out |= is_out;
            is_out || writer.as_mut().poll(cx).is_pending()
        });
        if leaves_out {
            cx.waker().wake_by_ref();
        }
        if writers.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[test]
fn random_users_of_one_file_in_tasks_and_futures_write_each_line_once() {
    within(120, || {
        for seed in 0..100_u64 {
            let mut random = Rng::with_seed(seed);
            let file = tempfile::NamedTempFile::new().unwrap();
            let open = std::fs::OpenOptions::new().read(true).append(true).open(file.path());
            let shared = Arc::new(Async::from(open.unwrap()));
            let told = Arc::new(Mutex::new(Vec::new()));
            let tasks: Vec<_> = (0..random.u64(1..5))
                .map(|task| {
                    let (shared, told) = (shared.clone(), told.clone());
                    let (is_clone, users) = (random.bool(), random.u64(1..5));
                    let random = random.fork();
                    spawn(async move {
                        let clone = (*shared).clone();
                        let file = if is_clone { &clone } else { &*shared };
                        let user = |user| -> Writer<'_> {
                            Box::pin(write_lines(file, seed * 100 + task * 10 + user, &told))
                        };
                        in_any_order(random, (0..users).map(user).collect()).await;
                    })
                })
                .collect();
            wait_for_all(tasks);
            let text = std::fs::read_to_string(file.path()).unwrap();
            let mut found: Vec<_> = text.split_inclusive('\n').collect();
            let told = told.lock().unwrap();
            let mut expected: Vec<_> = told.iter().map(String::as_str).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert!(
                found == expected,
                "seed {seed}: {} lines, not {}",
                found.len(),
                expected.len()
            );
        }
    });
}
