//! Arenas of equal buffers that the worker and the kernel pass back and forth, with the owner of each buffer written
//! down and checked.
//!
//! ```text
//!            acquire                      lend (self)
//!   Free ---------------> Held{readers} -------------> Kernel
//!    ^ ^                   |   ^                        | |
//!    | '---- drop, 0 ------'   '---------- take --------' |
//!    | '---- drop, n -> Reading{n} -- last end_read       |
//!    '------------------ give_back -----------------------'
//! ```
//!
//! Only a [`Buffer`] (one per buffer at most, not `Clone`) reaches the bytes, and it exists only in `Held`. So no `&mut`
//! to memory that the kernel may write can exist, and `bytes_mut` also refuses while a queued write reads from the buffer.

use super::mapping::Mapping;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Who may touch a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody; it is on the free list.
    Free,
    /// The kernel: a request in flight or a buffer ring refers to it.
    Kernel,
    /// The holder of its `Buffer`; `readers` writes to the TUN, queued or in flight, read parts of it.
    Held { readers: u32 },
    /// Its `Buffer` is gone, `readers` > 0 writes still read parts of it.
    Reading { readers: u32 },
}

/// `count` buffers of `size` bytes each.
pub(super) struct Pool {
    memory: Mapping,
    size: usize,
    states: Box<[Cell<State>]>,
    /// Last in, first out: the buffer used last is the one that is still in the cache.
    free: RefCell<Vec<u16>>,
}

impl Pool {
    /// Reserves the address space; pages are touched when they are first used.
    pub(super) fn new(count: u16, size: usize) -> io::Result<Rc<Pool>> {
        Ok(Rc::new(Pool {
            memory: Mapping::new(usize::from(count) * size)?,
            size,
            states: (0..count).map(|_| Cell::new(State::Free)).collect(),
            free: RefCell::new((0..count).rev().collect()),
        }))
    }

    /// Free -> Held.
    pub(super) fn acquire(self: &Rc<Pool>) -> Option<Buffer> {
        let index = self.free.borrow_mut().pop()?;
        self.states[usize::from(index)].set(State::Held { readers: 0 });
        Some(Buffer {
            pool: Rc::clone(self),
            index,
        })
    }

    /// Free -> Kernel.
    pub(super) fn lend(&self) -> Option<u16> {
        let index = self.free.borrow_mut().pop()?;
        self.states[usize::from(index)].set(State::Kernel);
        Some(index)
    }

    /// Kernel -> Held: the kernel said that it is done with the buffer.
    ///
    /// # Panics
    /// When the kernel did not have it.
    pub(super) fn take(self: &Rc<Pool>, index: u16) -> Buffer {
        let state = &self.states[usize::from(index)];
        assert_eq!(
            state.get(),
            State::Kernel,
            "buffer {index} taken from the kernel, which does not have it"
        );
        state.set(State::Held { readers: 0 });
        Buffer {
            pool: Rc::clone(self),
            index,
        }
    }

    /// Kernel -> Free, for a request whose outcome needs no look at the bytes.
    ///
    /// # Panics
    /// When the kernel did not have it.
    pub(super) fn give_back(&self, index: u16) {
        let state = &self.states[usize::from(index)];
        assert_eq!(
            state.get(),
            State::Kernel,
            "buffer {index} given back by the kernel, which does not have it"
        );
        self.set_free(index);
    }

    /// A write that reads from the buffer was queued: it stays away from the kernel's writing hands until `end_read`.
    ///
    /// # Panics
    /// When nobody holds the buffer: its bytes might be anything by the time the write runs.
    pub(super) fn begin_read(&self, index: u16) {
        let state = &self.states[usize::from(index)];
        match state.get() {
            State::Held { readers } => state.set(State::Held { readers: readers + 1 }),
            other => panic!("a write refers to buffer {index}, which is not held: {other:?}"),
        }
    }

    /// The final completion of a write that began with `begin_read`.
    ///
    /// # Panics
    /// When no write reads from the buffer.
    pub(super) fn end_read(&self, index: u16) {
        let state = &self.states[usize::from(index)];
        match state.get() {
            State::Held { readers } if readers > 0 => state.set(State::Held { readers: readers - 1 }),
            State::Reading { readers: 1 } => self.set_free(index),
            State::Reading { readers } => state.set(State::Reading { readers: readers - 1 }),
            other => panic!("a write on buffer {index} ended, but none had begun: {other:?}"),
        }
    }

    /// Where buffer `index` begins, for the kernel's use. Valid for `size()` bytes as long as the pool lives.
    pub(super) fn address(&self, index: u16) -> *mut u8 {
        assert!(usize::from(index) < self.states.len());
        // SAFETY: index < count, and the mapping is count * size bytes long.
        unsafe { self.memory.start().as_ptr().add(usize::from(index) * self.size) }
    }

    /// Bytes per buffer.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// How many buffers there are.
    pub(super) fn count(&self) -> usize {
        self.states.len()
    }

    /// How many are on the free list.
    pub(super) fn free_count(&self) -> usize {
        self.free.borrow().len()
    }

    fn set_free(&self, index: u16) {
        self.states[usize::from(index)].set(State::Free);
        self.free.borrow_mut().push(index);
    }
}

/// The exclusive right to a buffer's bytes. Dropping it gives the buffer back, once no write reads from it.
pub(super) struct Buffer {
    pool: Rc<Pool>,
    index: u16,
}

impl Buffer {
    /// Its number within its pool.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Whether this is one of `pool`'s buffers.
    pub(super) fn is_of(&self, pool: &Rc<Pool>) -> bool {
        Rc::ptr_eq(&self.pool, pool)
    }

    /// All `size()` bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies within the mapping, which is zeroed memory and lives as long as self.pool. While this
        // Buffer exists the state is Held: the kernel writes nothing there, and others only read.
        unsafe { std::slice::from_raw_parts(self.pool.address(self.index), self.pool.size) }
    }

    /// All `size()` bytes.
    ///
    /// # Panics
    /// While a queued write reads from the buffer.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let state = self.pool.states[usize::from(self.index)].get();
        assert_eq!(
            state,
            State::Held { readers: 0 },
            "buffer {} changed while a write reads from it",
            self.index
        );
        // SAFETY: as in bytes(); and Buffer is neither Clone nor made twice (take and acquire check and set the state),
        // so &mut self makes this the only reference. No write reads from it: readers is 0.
        unsafe { std::slice::from_raw_parts_mut(self.pool.address(self.index), self.pool.size) }
    }

    /// Held -> Kernel; the index is what a completion will name.
    ///
    /// # Panics
    /// While a queued write reads from the buffer.
    pub(super) fn lend(self) -> u16 {
        let state = &self.pool.states[usize::from(self.index)];
        assert_eq!(
            state.get(),
            State::Held { readers: 0 },
            "buffer {} lent while a write reads from it",
            self.index
        );
        state.set(State::Kernel);
        self.index
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let state = &self.pool.states[usize::from(self.index)];
        match state.get() {
            State::Held { readers: 0 } => self.pool.set_free(self.index),
            State::Held { readers } => state.set(State::Reading { readers }),
            // lend() moved the right to the kernel.
            State::Kernel => {}
            State::Free | State::Reading { .. } => unreachable!("a Buffer exists only in Held"),
        }
    }
}
