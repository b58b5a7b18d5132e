//! Arenas of equal buffers that the worker and the kernel pass back and forth, with the owner of each buffer written
//! down and checked.
//!
//! ```text
//!         lend             take
//!   Free ------> Kernel --------> Held <-. begin_read, end_read: writes to the TUN that read from it
//!     |           acquire          ^ |  |
//!     '----------------------------' |  |
//!     ^                              |--'
//!     |-------- drop, no write ------|
//!     '-- last end_read -- Reading <-'  drop, writes left
//! ```
//!
//! Only a [`Buffer`] (one per buffer at most, not `Clone`) reaches the bytes, and it exists only in `Held`. So no
//! reference to memory that the kernel may write can exist, and `bytes_mut` also refuses while a write reads from it.

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
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let state = &self.pool.states[usize::from(self.index)];
        match state.get() {
            State::Held { readers: 0 } => self.pool.set_free(self.index),
            State::Held { readers } => state.set(State::Reading { readers }),
            other => unreachable!("a Buffer exists only in Held, not in {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const COUNT: u16 = 4;

    #[derive(Debug, Clone, Copy)]
    enum Operation {
        Acquire,
        Lend,
        /// The kernel is done with the nth of those it has.
        Take(usize),
        Drop(usize),
        Fill(usize, u8),
        BeginRead(usize),
        EndRead(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let nth = 0usize..8;
        prop_oneof![
            Just(Operation::Acquire),
            Just(Operation::Lend),
            nth.clone().prop_map(Operation::Take),
            nth.clone().prop_map(Operation::Drop),
            (nth.clone(), any::<u8>()).prop_map(|(nth, byte)| Operation::Fill(nth, byte)),
            nth.clone().prop_map(Operation::BeginRead),
            nth.prop_map(Operation::EndRead),
        ]
    }

    /// What the pool does, with a list for everything.
    #[derive(Default)]
    struct Twin {
        free: Vec<u16>,
        kernel: Vec<u16>,
        reads: Vec<u16>,
        contents: BTreeMap<u16, u8>,
    }

    impl Twin {
        fn free_if_unused(&mut self, index: u16, held: &[Buffer]) {
            if !self.reads.contains(&index) && held.iter().all(|buffer| buffer.index() != index) {
                self.free.push(index);
            }
        }
    }

    proptest! {
        #[test]
        fn the_pool_agrees_with_lists_of_who_has_what(operations in proptest::collection::vec(operation(), 0..200)) {
            let pool = Pool::new(COUNT, 64).unwrap();
            let mut twin = Twin { free: (0..COUNT).rev().collect(), ..Twin::default() };
            let mut held: Vec<Buffer> = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Acquire => {
                        let buffer = pool.acquire();
                        prop_assert_eq!(buffer.as_ref().map(Buffer::index), twin.free.pop());
                        held.extend(buffer);
                    }
                    Operation::Lend => {
                        let index = pool.lend();
                        prop_assert_eq!(index, twin.free.pop());
                        twin.kernel.extend(index);
                    }
                    Operation::Take(nth) if nth < twin.kernel.len() => held.push(pool.take(twin.kernel.remove(nth))),
                    Operation::Drop(nth) if nth < held.len() => {
                        let index = held.remove(nth).index();
                        twin.free_if_unused(index, &held);
                    }
                    Operation::Fill(nth, byte) if nth < held.len() && !twin.reads.contains(&held[nth].index()) => {
                        held[nth].bytes_mut().fill(byte);
                        twin.contents.insert(held[nth].index(), byte);
                    }
                    Operation::BeginRead(nth) if nth < held.len() => {
                        pool.begin_read(held[nth].index());
                        twin.reads.push(held[nth].index());
                    }
                    Operation::EndRead(nth) if nth < twin.reads.len() => {
                        let index = twin.reads.remove(nth);
                        pool.end_read(index);
                        twin.free_if_unused(index, &held);
                    }
                    _ => {}
                }
                prop_assert_eq!(pool.free_count(), twin.free.len());
                for buffer in &held {
                    let byte = twin.contents.get(&buffer.index()).copied().unwrap_or(0);
                    prop_assert!(buffer.bytes().iter().all(|&found| found == byte));
                }
            }
        }
    }

    #[test]
    fn the_buffer_used_last_comes_first() {
        let pool = Pool::new(3, 64).unwrap();
        let (first, second) = (pool.acquire().unwrap(), pool.acquire().unwrap());
        let index = first.index();
        drop((second, first));
        assert_eq!(pool.acquire().map(|buffer| buffer.index()), Some(index));
    }

    #[test]
    fn a_buffer_outlives_its_pool_s_owner() {
        let mut buffer = Pool::new(1, 4096).unwrap().acquire().unwrap();
        buffer.bytes_mut().fill(7);
        assert_eq!(buffer.bytes(), [7; 4096]);
    }

    #[test]
    #[should_panic(expected = "changed while a write reads from it")]
    fn bytes_that_a_write_reads_cannot_be_changed() {
        let pool = Pool::new(1, 64).unwrap();
        let mut buffer = pool.acquire().unwrap();
        pool.begin_read(buffer.index());
        buffer.bytes_mut();
    }

    #[test]
    #[should_panic(expected = "which is not held")]
    fn a_write_cannot_read_what_the_kernel_has() {
        let pool = Pool::new(1, 64).unwrap();
        pool.begin_read(pool.lend().unwrap());
    }

    #[test]
    #[should_panic(expected = "which does not have it")]
    fn the_kernel_cannot_return_a_buffer_twice() {
        let pool = Pool::new(1, 64).unwrap();
        let index = pool.lend().unwrap();
        let _held = pool.take(index);
        pool.take(index);
    }

    #[test]
    #[should_panic(expected = "none had begun")]
    fn a_write_cannot_end_before_it_begins() {
        let pool = Pool::new(1, 64).unwrap();
        let buffer = pool.acquire().unwrap();
        pool.end_read(buffer.index());
    }
}
