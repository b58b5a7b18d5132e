//! A flag for the threads of a scope, which waits for them also where its test panics.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets the flag that tells them to end.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
