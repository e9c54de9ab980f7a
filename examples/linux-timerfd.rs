//! Sleeps with a timer of the kernel's, a descriptor that becomes readable when the time has come.
//!
//! Run with:
//!
//! ```text
//! cargo run --example linux-timerfd
//! cargo run --example linux-timerfd -- 100        # in milliseconds
//! ```

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> smol::io::Result<()> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    use rustix::time::{timerfd_create, timerfd_settime};
    use smol::{Async, io};
    use std::time::{Duration, Instant};

    /// `Timer::after` is simpler and cheaper. This shows how to wait for any descriptor.
    async fn sleep(duration: Duration) -> io::Result<()> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = Async::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;

        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: duration.try_into().map_err(io::Error::other)?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;

        // It yields eight bytes: how often it has fired since the last read.
        timer.read_with(|fd| Ok(rustix::io::read(fd, &mut [0; 8])?)).await?;
        Ok(())
    }

    let millis = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1000);

    smol::block_on(async {
        let start = Instant::now();
        sleep(Duration::from_millis(millis)).await?;
        println!("Slept {} ms", start.elapsed().as_millis());
        Ok(())
    })
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() {
    println!("This example works only on Linux.");
}
