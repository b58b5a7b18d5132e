//! Steering: a classic BPF program on the REUSEPORT group that sends each data message to the worker that owns its
//! session, and all else to the door (SO_ATTACH_REUSEPORT_CBPF, socket(7); the filter sees the UDP payload,
//! net/core/sock_reuseport.c).
//!
//! The group's first socket is the door's, the others are the workers'. The two low bytes of a data message's receiver index
//! tell the worker ([`owner`](crate::wire::message::owner)). Nothing here is authentic: steering is only a good guess, and whoever forges
//! it reaches a worker that knows no such session.

use super::option::{self, OptionValue};
use crate::wire::message::{NATIVE_DATA, WG_DATA};
use std::io;
use std::os::fd::AsFd;

/// The place of the door's socket in the group. It is also what a program returns that loads past the end of a datagram.
const DOOR: u32 = 0;

/// One instruction: code, jump if true, jump if false, operand (struct sock_filter of linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction(u16, u8, u8, u32);

/// Codes as linux/bpf_common.h composes them.
const LOAD_BYTE: u16 = 0x20 | 0x10; // BPF_LD | BPF_B | BPF_ABS
const JUMP_EQUAL: u16 = 0x05 | 0x10; // BPF_JMP | BPF_JEQ | BPF_K
const ADD: u16 = 0x04; // BPF_ALU | BPF_ADD | BPF_K
const ADD_X: u16 = 0x04 | 0x08; // BPF_ALU | BPF_ADD | BPF_X
const A_TO_X: u16 = 0x07; // BPF_MISC | BPF_TAX
const MODULO: u16 = 0x04 | 0x90; // BPF_ALU | BPF_MOD | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const RETURN_A: u16 = 0x06 | 0x10; // BPF_RET | BPF_A

/// Makes `socket` drop whatever arrives, for one that only sends (SO_ATTACH_FILTER, socket(7)): nobody answers for it, and
/// nothing fills its buffer.
///
/// # Errors
/// What setsockopt(2) says.
pub fn deafen(socket: &impl AsFd) -> io::Result<()> {
    // Keep 0 bytes of every datagram.
    attach_as(libc::SO_ATTACH_FILTER, socket, &[Instruction(RETURN, 0, 0, 0)])
}

/// The program for a door and `workers` workers.
fn program(workers: u8) -> [Instruction; 11] {
    [
        Instruction(LOAD_BYTE, 0, 0, 0),
        Instruction(JUMP_EQUAL, 1, 0, WG_DATA as u32),
        Instruction(JUMP_EQUAL, 0, 7, NATIVE_DATA as u32),
        // The receiver index is little-endian and begins at byte 4.
        Instruction(LOAD_BYTE, 0, 0, 4),
        Instruction(A_TO_X, 0, 0, 0),
        Instruction(LOAD_BYTE, 0, 0, 5),
        Instruction(ADD_X, 0, 0, 0),
        Instruction(MODULO, 0, 0, workers as u32),
        Instruction(ADD, 0, 0, DOOR + 1),
        Instruction(RETURN_A, 0, 0, 0),
        Instruction(RETURN, 0, 0, DOOR),
    ]
}

/// struct sock_fprog, with its instructions borrowed.
#[repr(C)]
struct Program<'a> {
    len: libc::c_ushort,
    instructions: *const libc::sock_filter,
    borrowed: std::marker::PhantomData<&'a [libc::sock_filter]>,
}

// SAFETY: the same layout as struct sock_fprog (a zero-sized marker adds nothing), and the marker keeps the
// instructions borrowed.
unsafe impl OptionValue for Program<'_> {}

/// Steers the REUSEPORT group that `socket` belongs to: of its members, in the order in which they were bound, the first one
/// is the door's and the others are the workers'.
///
/// # Errors
/// `EINVAL` when the socket is in no group; what setsockopt(2) says.
///
/// # Panics
/// When `workers` is 0.
pub fn attach(socket: &impl AsFd, workers: u8) -> io::Result<()> {
    assert!(workers > 0, "nobody to steer to");
    attach_as(libc::SO_ATTACH_REUSEPORT_CBPF, socket, &program(workers))
}

fn attach_as(option: libc::c_int, socket: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let instructions: Vec<_> = program
        .iter()
        .map(|&Instruction(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let program = Program {
        len: libc::c_ushort::try_from(instructions.len()).expect("a handful"),
        instructions: instructions.as_ptr(),
        borrowed: std::marker::PhantomData,
    };
    option::set(socket.as_fd(), libc::SOL_SOCKET, option, &program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What net/core/filter.c does with these instructions.
    fn run(program: &[Instruction], packet: &[u8]) -> u32 {
        let (mut at, mut a, mut x) = (0, 0u32, 0u32);
        loop {
            let Instruction(code, if_true, if_false, k) = program[at];
            at += 1;
            match code {
                LOAD_BYTE => match packet.get(k as usize) {
                    Some(byte) => a = u32::from(*byte),
                    None => return 0,
                },
                JUMP_EQUAL => at += usize::from(if a == k { if_true } else { if_false }),
                MODULO => a %= k,
                ADD => a += k,
                ADD_X => a += x,
                A_TO_X => x = a,
                RETURN => return k,
                RETURN_A => return a,
                other => panic!("unknown code {other:#x}"),
            }
        }
    }

    /// What the program is for, said without it.
    fn oracle(workers: u8, packet: &[u8]) -> u32 {
        match packet {
            [WG_DATA | NATIVE_DATA, _, _, _, lane, first, ..] => {
                1 + (u32::from(*lane) + u32::from(*first)) % u32::from(workers)
            }
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn the_program_agrees_with_its_purpose(
            workers in 1u8..,
            kind in prop_oneof![Just(WG_DATA), Just(NATIVE_DATA), any::<u8>()],
            rest in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut packet = vec![kind];
            packet.extend(rest);
            prop_assert_eq!(run(&program(workers), &packet), oracle(workers, &packet));
        }
    }

    #[test]
    fn what_is_too_short_for_an_index_goes_to_the_door() {
        for packet in [&[][..], &[WG_DATA], &[NATIVE_DATA, 0, 0, 0], &[NATIVE_DATA, 0, 0, 0, 1]] {
            assert_eq!(run(&program(3), packet), DOOR);
        }
    }

    #[test]
    fn the_layout_is_that_of_sock_fprog() {
        assert_eq!(size_of::<Program<'_>>(), size_of::<libc::sock_fprog>());
        assert_eq!(
            std::mem::offset_of!(Program<'_>, instructions),
            std::mem::offset_of!(libc::sock_fprog, filter)
        );
    }
}
