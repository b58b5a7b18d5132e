//! The cores that this process may use (sched_getaffinity(2)), and pinning to them.

use core_affinity::CoreId;

/// A core of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Core(usize);

/// Lets other threads go first where there are not enough cores: raises the calling thread's nice value by `by`
/// (nice(2), which on Linux is about one thread).
pub fn be_nice(by: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::nice(by) };
}

impl Core {
    /// The kernel's number of the core.
    pub fn number(self) -> usize {
        self.0
    }

    /// Keeps the calling thread on this core. False when the kernel refuses.
    pub fn pin(self) -> bool {
        core_affinity::set_for_current(CoreId { id: self.0 })
    }
}

/// The cores that the calling thread may run on, in order; none when the kernel does not tell.
pub fn allowed() -> Vec<Core> {
    core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|core| Core(core.id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_allowed_core() {
        let cores = allowed();
        let last = *cores.last().expect("this thread runs on some core");
        std::thread::spawn(move || {
            assert!(last.pin());
            assert_eq!(allowed(), [last]);
        })
        .join()
        .unwrap();
        assert_eq!(allowed(), cores);
    }
}
