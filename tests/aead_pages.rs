//! Records that lie between two pages without access: a cipher that reads or writes one byte too far dies here.

use std::ptr;

use ringway::crypto::{Aead, Algorithm, Record, TAG_LEN};

#[path = "crypto/choices.rs"]
mod choices;

/// Memory whose neighbours on both sides cannot be accessed.
struct Guarded {
    start: *mut u8,
    page: usize,
    len: usize,
}

impl Guarded {
    fn new(pages: usize) -> Guarded {
        // SAFETY: it takes no memory and cannot fail for this name.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let (len, flags) = (pages * page, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe { libc::mmap(ptr::null_mut(), len + 2 * page, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.cast::<u8>();
        let inner = start.wrapping_add(page).cast();
        // SAFETY: the range lies within the mapping, which nobody else uses.
        let result = unsafe { libc::mprotect(inner, len, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(result, 0);
        Guarded { start, page, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: these bytes are mapped, readable, writable and zeroed, and borrowed through `self` alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(self.page), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and no slice of it is left.
        unsafe { libc::munmap(self.start.cast(), self.len + 2 * self.page) };
    }
}

#[test]
fn no_backend_reaches_beyond_a_record() {
    let mut memory = Guarded::new(2);
    let memory = memory.bytes();
    let nonce = [3; 12];
    for choice in choices::choices() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let aead = Aead::new(algorithm, choice, &[8; 32]);
            for len in (0..2100)
                .chain([4096, 5000, memory.len() - TAG_LEN])
                .map(|len| len + TAG_LEN)
            {
                let at_end = memory.len() - len;
                for text in [0..len, at_end..at_end + len] {
                    let text = &mut memory[text];
                    aead.seal_in_place(&nonce, &[1; 16], text);
                    aead.open_in_place(&nonce, &[1; 16], text).expect("just sealed");
                    aead.seal_in_place(&nonce, &[1; 16], text);
                    text[len - 1] ^= 1;
                    aead.open_in_place(&nonce, &[1; 16], text).expect_err("a flipped bit");
                }
            }
            for len in 0..900 {
                // The first record begins where the page does and the last ends where it does.
                let mut records: Vec<_> = memory
                    .chunks_mut(memory.len() / 8)
                    .zip(0..)
                    .map(|(part, number)| {
                        let text = if number == 0 {
                            0..len
                        } else {
                            part.len() - len..part.len()
                        };
                        Record::new([number; 12], &[], &mut part[text])
                    })
                    .collect();
                records.retain(|record| record.text.len() >= TAG_LEN);
                aead.seal_run(&mut records);
                aead.open_run(&mut records);
                assert!(records.iter().all(|record| !record.forged));
            }
        }
    }
}
