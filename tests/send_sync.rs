//! What may be sent to, and shared with, other threads: checked by the compiler, so the test is that this file compiles.

use smol::{
    Async, Executor, FallibleTask, LocalExecutor, Scope, ScopedTask, Task, TimedOut, Timer, Unblock,
};
use std::{
    cell::Cell,
    fs::File,
    future::{Future, pending},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Child,
    time::Duration,
};

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}
fn is_unpin<T: Unpin>() {}
fn is_static<T: 'static>() {}

fn sends<T: Send>(value: T) -> T {
    value
}

fn lives_long<T: Send + 'static>(value: T) -> T {
    value
}

/// `is_not!(Type: Trait)` does not compile if `Type` has the trait: the call would be ambiguous.
macro_rules! is_not {
    ($type:ty: $trait:path) => {{
        trait Ambiguous<A> {
            fn check() {}
        }
        impl<T: ?Sized> Ambiguous<()> for T {}
        struct Has;
        impl<T: ?Sized + $trait> Ambiguous<Has> for T {}
        <$type as Ambiguous<_>>::check();
    }};
}

/// Not `Sync`.
type NotSync = Cell<u8>;
/// Neither `Send` nor `Sync`.
type NotSend = *const u8;

#[test]
fn types_are_send_sync_and_unpin_where_promised() {
    is_send::<Executor<'static>>();
    is_sync::<Executor<'static>>();
    is_unpin::<Executor<'static>>();
    is_send::<Task<u8>>();
    is_sync::<Task<u8>>();
    is_unpin::<Task<NotSend>>();
    is_send::<FallibleTask<u8>>();
    is_send::<Timer>();
    is_sync::<Timer>();
    is_unpin::<Timer>();
    is_static::<Timer>();
    is_send::<TimedOut>();
    is_sync::<TimedOut>();
    is_send::<Unblock<File>>();
    is_unpin::<Unblock<File>>();
    is_send::<Async<TcpStream>>();
    is_sync::<Async<TcpStream>>();
    is_unpin::<Async<TcpStream>>();
    is_sync::<Async<TcpListener>>();
    is_sync::<Async<UdpSocket>>();
    is_sync::<Async<File>>();
    is_send::<Async<Child>>();
    is_sync::<Async<Child>>();
    is_unpin::<ScopedTask<NotSend>>();
}

#[test]
fn what_belongs_to_one_thread_can_not_leave_it() {
    is_not!(LocalExecutor<'static>: Send);
    is_not!(LocalExecutor<'static>: Sync);
    is_not!(Scope<'static>: Send);
    is_not!(Scope<'static>: Sync);
    is_not!(Task<NotSend>: Send);
    is_not!(Async<NotSync>: Sync);
    is_not!(Async<NotSend>: Send);
}

#[test]
fn futures_can_be_spawned_where_what_they_hold_can_be_sent() {
    // Never polled: that these lines compile is the point.
    static EX: Executor<'static> = Executor::new();
    drop(lives_long(smol::timeout(Duration::ZERO, pending::<()>())));
    drop(lives_long(smol::resolve("127.0.0.1:80")));
    drop(lives_long(Async::<TcpStream>::connect(("127.0.0.1", 80))));
    drop(lives_long(EX.run(async {})));
    drop(lives_long(EX.tick()));
    #[allow(dead_code)]
    fn of_sockets(
        listener: &Async<TcpListener>,
        stream: &Async<TcpStream>,
        udp: &Async<UdpSocket>,
    ) {
        drop(sends(listener.accept()));
        drop(sends(listener.incoming()));
        drop(sends(stream.readable()));
        drop(sends(stream.writable()));
        drop(sends(stream.peek(&mut [])));
        drop(sends(stream.read_with(|_| Ok(()))));
        drop(sends(stream.write_with(|_| Ok(()))));
        drop(sends(udp.recv_from(&mut [])));
        drop(sends(udp.send_to(&[], ("127.0.0.1", 80))));
    }
    #[allow(dead_code)]
    fn of_files_and_children(
        file: &Async<File>,
        child: &Async<Child>,
        unblock: &mut Unblock<File>,
    ) {
        drop(sends(file.with(|_| ())));
        drop(sends(child.status()));
        drop(sends(unblock.with_mut(|_| ())));
    }
    drop(lives_long(Async::<File>::open("/nowhere")));
}

/// The main future may borrow and need not be `Send`, a task's must be `'static`; the types say so.
#[test]
fn block_on_takes_any_future() {
    fn takes<'a, F: Future<Output = &'a u8> + 'a>(future: F) -> &'a u8 {
        smol::block_on(future)
    }
    let (number, not_send) = (7, std::rc::Rc::new(()));
    assert_eq!(
        takes(async {
            drop(not_send);
            &number
        }),
        &7
    );
}
