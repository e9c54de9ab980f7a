//! once_cell's `sync::OnceCell`, as far as a runtime needs it: whoever comes while another one
//! fills it waits.

#![deny(unsafe_code)]
#![allow(missing_docs)]

pub mod sync {
    use sim::sync::OnceLock;

    #[derive(Debug, Default)]
    pub struct OnceCell<T>(OnceLock<T>);

    impl<T> OnceCell<T> {
        pub const fn new() -> OnceCell<T> {
            OnceCell(OnceLock::new())
        }

        #[track_caller]
        pub fn get(&self) -> Option<&T> {
            self.0.get()
        }

        #[track_caller]
        pub fn set(&self, value: T) -> Result<(), T> {
            self.0.set(value)
        }

        #[track_caller]
        pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
            self.0.get_or_init(init)
        }

        #[track_caller]
        pub fn get_or_try_init<E>(&self, init: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
            self.0.get_or_try(init)
        }

        pub fn into_inner(self) -> Option<T> {
            self.0.into_inner()
        }
    }
}
