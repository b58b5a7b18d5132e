//! io_uring itself (io_uring(7)): set-up, waiting, and rings of provided buffers.

use super::engine::Wait;
use super::mapping::Mapping;
use super::pool::{Buffer, Pool};
use super::probe::Refusal;
use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// IORING_ENTER_GETEVENTS (linux/io_uring.h).
const ENTER_GETEVENTS: u32 = 1;

/// One ring. Only the thread that made it may use it (IORING_SETUP_SINGLE_ISSUER), which is why it is not `Send`.
pub(super) struct Ring {
    uring: IoUring,
    has_min_wait: bool,
    not_send: std::marker::PhantomData<*const ()>,
}

/// A completion, copied out of the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    /// What the request was given.
    pub(super) user_data: u64,
    /// What the system call would have returned, errors negative.
    pub(super) result: i32,
    /// The provided buffer that it used.
    pub(super) buffer: Option<u16>,
    /// More completions of this request follow.
    pub(super) more: bool,
}

impl Ring {
    /// A ring with everything that the engine needs.
    pub(super) fn new(entries: u32, completions: u32) -> Result<Ring, Refusal> {
        let mut builder = IoUring::builder();
        // SINGLE_ISSUER | DEFER_TASKRUN (6.1): completions are worked off in our own io_uring_enter, not in interrupts
        // of whatever we do. SUBMIT_ALL: one bad request does not hold up the others.
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(completions);
        let uring = builder.build(entries).map_err(Refusal::of_setup)?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(Refusal::TooOld("IORING_FEAT_EXT_ARG"));
        }
        let mut probe = Probe::new();
        let asked = uring.submitter().register_probe(&mut probe);
        asked.map_err(|error| Refusal::Os {
            step: "asking io_uring for its operations",
            error,
        })?;
        if !probe.is_supported(opcode::ReadMulti::CODE) {
            return Err(Refusal::TooOld("multishot read"));
        }
        let has_min_wait = uring.params().is_feature_min_timeout();
        Ok(Ring {
            uring,
            has_min_wait,
            not_send: std::marker::PhantomData,
        })
    }

    /// Registers descriptors: request i refers to descriptor i by `types::Fixed(i)`.
    pub(super) fn register_files(&self, files: &[std::os::fd::RawFd]) -> Result<(), Refusal> {
        let registered = self.uring.submitter().register_files(files);
        registered.map_err(|error| Refusal::Os {
            step: "registering files with io_uring",
            error,
        })
    }

    /// Registers another descriptor in place of descriptor `index`, for requests that are submitted from here on.
    pub(super) fn replace_file(&self, index: u32, file: BorrowedFd<'_>) -> io::Result<()> {
        let replaced = self
            .uring
            .submitter()
            .register_files_update(index, &[file.as_raw_fd()])?;
        // The kernel says how many it replaced before an error.
        if replaced == 1 {
            Ok(())
        } else {
            Err(io::ErrorKind::Other.into())
        }
    }

    /// Lets go of the registered descriptors at once; closing the ring does it some time later.
    pub(super) fn unregister_files(&self) -> io::Result<()> {
        self.uring.submitter().unregister_files()
    }

    /// Queues a request for the next `enter`.
    ///
    /// # Safety
    /// All memory that the request points to stays valid, and where the kernel writes unreferenced, until its final
    /// completion has been reaped.
    ///
    /// # Panics
    /// When the submission queue is full: the caller bounds its requests.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.uring.submission().push(entry) };
        pushed.expect("requests are bounded below the size of the submission queue");
    }

    /// Whether there is something for `enter` to submit, or completions wait in the kernel because the queue was full.
    pub(super) fn has_queued(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.cq_overflow()
    }

    /// Submits what was queued and waits as told. Interrupted, timed out, and out of room for completions (they must be
    /// reaped first) are no errors.
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let submitter = self.uring.submitter();
        let entered = match wait {
            Wait::Now => {
                let queued = u32::try_from(self.uring.submission().len()).expect("the queue's size is an u32");
                // SAFETY: no argument is passed; the entries to submit were vouched for in push(). GETEVENTS without a
                // minimum runs deferred completions, which submit() would leave.
                unsafe {
                    self.uring
                        .submitter()
                        .enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None)
                }
            }
            Wait::Block | Wait::Batch { timeout: None, .. } if !self.batches(wait) => submitter.submit_and_wait(1),
            Wait::For(timeout)
            | Wait::Batch {
                timeout: Some(timeout), ..
            } if !self.batches(wait) => {
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&Timespec::from(timeout)))
            }
            Wait::Batch {
                events,
                window,
                timeout,
            } => {
                // Without a timeout the kernel returns at the end of the window even if nothing happened.
                let timeout = Timespec::from(timeout.unwrap_or(Duration::from_secs(3600)));
                let window_us = u32::try_from(window.as_micros()).unwrap_or(u32::MAX);
                let args = SubmitArgs::new().timespec(&timeout).min_wait_usec(window_us);
                submitter.submit_with_args(events.max(1) as usize, &args)
            }
            Wait::Block | Wait::For(_) => unreachable!("batches() is true of Batch only"),
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // EBUSY, EAGAIN: completions overflowed or the kernel is out of requests; both end by reaping.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn batches(&self, wait: Wait) -> bool {
        self.has_min_wait && matches!(wait, Wait::Batch { .. })
    }

    /// Moves all completions into `completions`; whether some had found the queue full (the next enter brings them).
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) -> bool {
        completions.clear();
        completions.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more: cqueue::more(entry.flags()),
        }));
        self.uring.submission().cq_overflow()
    }
}

/// A ring of provided buffers (io_uring_register_buf_ring(3)): memory from which multishot requests take their buffers.
pub(super) struct BufferRing {
    entries: Mapping,
    count: u16,
    tail: u16,
    group: u16,
    /// How many buffers the kernel has.
    provided: u16,
}

impl BufferRing {
    /// Registers group `group` for up to `count` buffers, a power of two.
    ///
    /// # Safety
    /// The BufferRing is kept until the group is unregistered or `ring` is gone.
    pub(super) unsafe fn register(ring: &Ring, group: u16, count: u16) -> Result<BufferRing, Refusal> {
        assert!(count.is_power_of_two());
        let refuse = |error| Refusal::Os {
            step: "registering buffers with io_uring",
            error,
        };
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>()).map_err(refuse)?;
        let address = entries.start().as_ptr() as u64;
        // SAFETY: the mapping has room for count entries and lives as long as the BufferRing, which the caller keeps.
        let registered = unsafe {
            ring.uring
                .submitter()
                .register_buf_ring_with_flags(address, count, group, 0)
        };
        registered.map_err(refuse)?;
        Ok(BufferRing {
            entries,
            count,
            tail: 0,
            group,
            provided: 0,
        })
    }

    /// The number that requests name it by.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// How many buffers the kernel has.
    pub(super) fn provided(&self) -> usize {
        usize::from(self.provided)
    }

    /// Lends a free buffer of `pool` to the kernel, which sees it after `publish`; false when none is free. One pool and
    /// one BufferRing belong together, with as many buffers as entries.
    pub(super) fn provide(&mut self, pool: &Pool) -> bool {
        debug_assert_eq!(pool.count(), usize::from(self.count));
        let Some(index) = pool.lend() else { return false };
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: slot < count entries of the mapping.
        let entry = unsafe { self.entry().add(slot) };
        // SAFETY: the kernel reads entries between its head and the published tail; this one is behind the tail, because
        // at most count buffers exist and each is in the ring at most once. The mapping is zeroed and any bits are a
        // valid entry, so the reference is to initialised memory, and the only one.
        let entry = unsafe { &mut *entry };
        entry.set_addr(pool.address(index) as u64);
        entry.set_len(u32::try_from(pool.size()).expect("buffers are far smaller than 4 GiB"));
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        self.provided += 1;
        true
    }

    /// Lets the kernel see what was provided.
    pub(super) fn publish(&mut self) {
        // SAFETY: the mapping begins with the first entry, whose reserved field is the ring's tail.
        let tail = unsafe { BufRingEntry::tail(self.entry()) };
        // SAFETY: the field is 16 bits wide, aligned to 2, inside the mapping, and shared with the kernel only, which
        // reads it with acquire order.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Takes a buffer that a completion named.
    pub(super) fn take(&mut self, pool: &Rc<Pool>, index: u16) -> Buffer {
        self.provided -= 1;
        pool.take(index)
    }

    fn entry(&self) -> *mut BufRingEntry {
        self.entries.start().as_ptr().cast()
    }
}
