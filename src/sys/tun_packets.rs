//! A TUN for programs that move packets one by one: one queue, no virtio_net_hdr, no offloads.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use super::tun::{self, TunError};

/// A TUN interface that lives as long as this. Its descriptor does not block.
#[derive(Debug)]
pub struct PacketTun {
    name: String,
    ifindex: u32,
    file: File,
}

impl PacketTun {
    /// Creates the interface `name` (a `%d` in the name becomes the first free number). It is down and has no address.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn create(name: &str) -> Result<PacketTun, TunError> {
        tun::check_name(name)?;
        let file = tun::open()?;
        let name = tun::attach(&file, name, libc::IFF_TUN_EXCL)?;
        Ok(PacketTun {
            ifindex: tun::index(&name)?,
            name,
            file,
        })
    }

    /// The name that the interface was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Takes one IP packet that the system sends into the tunnel; what `packet` has no room for is cut off. Waits for one, for
    /// good or for `patience`.
    ///
    /// # Errors
    /// `WouldBlock`: none came in time. `EBADFD`: the interface is gone.
    pub fn recv(&self, packet: &mut [u8], patience: Option<Duration>) -> io::Result<usize> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        loop {
            match (&self.file).read(packet) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && patience != Some(Duration::ZERO) => {
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    if left == Some(Duration::ZERO) {
                        return Err(error);
                    }
                    self.wait(left)?;
                }
                result => return result,
            }
        }
    }

    /// Gives one IP packet to the system, as if it had come out of the tunnel.
    ///
    /// # Errors
    /// `EINVAL`: not an IP packet. `EIO`: the interface is down.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match (&self.file).write(packet) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    /// Waits until there is something to read, or `patience` is over.
    fn wait(&self, patience: Option<Duration>) -> io::Result<()> {
        let mut wanted = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up: a wait that ends early is begun again.
        let timeout = patience.map_or(-1, |patience| {
            i32::try_from(patience.as_millis() + 1).unwrap_or(i32::MAX)
        });
        // SAFETY: poll(2) reads and writes one pollfd, which is ours.
        let result = unsafe { libc::poll(&raw mut wanted, 1, timeout) };
        if result >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        }
    }
}

impl AsFd for PacketTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
