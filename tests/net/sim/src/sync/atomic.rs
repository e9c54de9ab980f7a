//! Atomics: std's own, with a point before each operation. The simulation is sequentially
//! consistent, whatever ordering is asked for.

pub use std::sync::atomic::{Ordering, compiler_fence, fence};

/// Defines the atomic types, with the function to call before each operation.
macro_rules! atomics {
    ($point:path) => {
        $crate::sync::atomic::atomics!(@int $point, AtomicU8 u8, AtomicU16 u16);
        $crate::sync::atomic::atomics!(@int $point, AtomicU32 u32, AtomicU64 u64);
        $crate::sync::atomic::atomics!(@int $point, AtomicUsize usize, AtomicIsize isize);
        $crate::sync::atomic::atomics!(@int $point, AtomicI32 i32, AtomicI64 i64);
        $crate::sync::atomic::atomics!(@type $point, [] AtomicBool bool);
        $crate::sync::atomic::atomics!(@type $point, [T] AtomicPtr *mut T);
        impl AtomicBool {
            $crate::sync::atomic::atomics!(
                @ops $point, bool, fetch_and fetch_or fetch_xor fetch_nand
            );
        }
    };
    (@int $point:path, $($name:ident $t:ident),*) => {$(
        $crate::sync::atomic::atomics!(@type $point, [] $name $t);
        impl $name {
            $crate::sync::atomic::atomics!(
                @ops $point, $t,
                fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min
            );
        }
    )*};
    (@ops $point:path, $t:ty, $($op:ident)*) => {$(
        #[inline]
        #[track_caller]
        pub fn $op(&self, value: $t, order: Ordering) -> $t {
            $point(stringify!($op), ::std::panic::Location::caller());
            self.0.$op(value, order)
        }
    )*};
    (@type $point:path, [$($g:ident)?] $name:ident $t:ty) => {
        #[derive(Default)]
        #[repr(transparent)]
        pub struct $name $(<$g>)? (::std::sync::atomic::$name $(<$g>)?);

        impl $(<$g>)? $name $(<$g>)? {
            pub const fn new(value: $t) -> Self {
                Self(::std::sync::atomic::$name::new(value))
            }

            pub fn into_inner(self) -> $t {
                self.0.into_inner()
            }

            pub fn get_mut(&mut self) -> &mut $t {
                self.0.get_mut()
            }

            /// The same without a point, for whoever waits for a change.
            pub fn peek(&self) -> $t {
                self.0.load(Ordering::SeqCst)
            }

            #[inline]
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $t {
                $point("load", ::std::panic::Location::caller());
                self.0.load(order)
            }

            #[inline]
            #[track_caller]
            pub fn store(&self, value: $t, order: Ordering) {
                $point("store", ::std::panic::Location::caller());
                self.0.store(value, order);
            }

            #[inline]
            #[track_caller]
            pub fn swap(&self, value: $t, order: Ordering) -> $t {
                $point("swap", ::std::panic::Location::caller());
                self.0.swap(value, order)
            }

            #[inline]
            #[track_caller]
            pub fn compare_exchange(
                &self,
                from: $t,
                to: $t,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$t, $t> {
                $point("compare_exchange", ::std::panic::Location::caller());
                self.0.compare_exchange(from, to, success, failure)
            }

            #[inline]
            #[track_caller]
            pub fn compare_exchange_weak(
                &self,
                from: $t,
                to: $t,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$t, $t> {
                $point("compare_exchange", ::std::panic::Location::caller());
                self.0.compare_exchange(from, to, success, failure)
            }

            #[track_caller]
            pub fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut update: impl FnMut($t) -> Option<$t>,
            ) -> Result<$t, $t> {
                let mut from = self.load(failure);
                while let Some(to) = update(from) {
                    match self.compare_exchange(from, to, success, failure) {
                        Ok(before) => return Ok(before),
                        Err(now) => from = now,
                    }
                }
                Err(from)
            }
        }

        impl $(<$g>)? ::std::fmt::Debug for $name $(<$g>)? {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $(<$g>)? From<$t> for $name $(<$g>)? {
            fn from(value: $t) -> Self {
                Self::new(value)
            }
        }
    };
}

pub(crate) use atomics;

atomics!(crate::scheduler::point);
