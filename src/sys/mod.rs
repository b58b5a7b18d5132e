//! The kernel's side: the only unsafe code of ringway. One kernel feature per file, and two engines behind one trait.
//!
//! ```text
//! engine    what a worker asks for       uring, plain   the two that answer
//! tun udp   the devices                  steer          which socket gets a datagram
//! pool      who owns a buffer            gather         groups as iovecs, buffers kept while a write reads them
//! send      sendmmsg, and what to do when it is refused  receive, received  recvmmsg, and what it said
//! ring      io_uring and its buffers     probe          why it is refused
//! inbox     small datagrams beside an engine        outbox   the same, out
//! wake      eventfd     poll  waiting    cpu  pinning     clock  the time     watch  inotify     daemon  going to the background
//! tap       packet sockets, which see all that passes an interface
//! exec      another program in our place  inherit  descriptors that it has too     memfd    what it is told
//! device    one interface for a socket, and the mark that keeps it out of the tunnel    tun_packets   a TUN without offloads
//! flags    whether reads and writes wait
//! ```

mod address;
pub mod clock;
mod cmsg;
pub mod cpu;
pub mod daemon;
pub mod device;
pub mod engine;
mod errno;
pub mod exec;
pub mod flags;
mod gather;
pub mod inbox;
pub mod inherit;
mod mapping;
pub mod memfd;
mod option;
pub mod outbox;
pub mod plain;
pub mod poll;
mod pool;
pub mod probe;
mod receive;
mod received;
mod ring;
mod send;
pub mod steer;
pub mod tap;
pub mod terminal;
#[cfg(test)]
mod tests;
pub mod tun;
pub mod tun_mtu;
pub mod tun_packets;
pub mod udp;
pub mod uring;
pub mod wake;
pub mod watch;

/// Makes a system call with arguments that it can do nothing with; what the kernel says. Not for calls that take none.
#[cfg(test)]
pub(crate) fn call_in_vain(number: libc::c_long) -> std::io::Error {
    let nothing: libc::c_long = -1;
    // SAFETY: as a pointer -1 is no address of ours, so the kernel fails with EFAULT rather than read or write there; as a
    // descriptor, a process, a command or a set of flags it is none, or asks for what is (personality(2)).
    let result = unsafe { libc::syscall(number, nothing, nothing, nothing, nothing, nothing, nothing) };
    match result {
        -1 => std::io::Error::last_os_error(),
        _ => std::io::Error::from_raw_os_error(0),
    }
}
