//! A TUN's MTU at this moment, wherever its interface was moved to and whatever it was renamed to.
//!
//! The device knows its name (TUNGETIFF) and its network namespace (TUNGETDEVNETNS, since 4.20), but not its MTU, which
//! only a socket in that namespace can ask for (SIOCGIFMTU, netdevice(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use super::address::Family;
use super::tun::TunQueue;
use super::udp;

/// Asks for one TUN's MTU. Holds on to the TUN: the interface lives as long as this.
pub struct TunMtu {
    queue: OwnedFd,
    /// In the interface's namespace, and which one that is (device and inode of its file).
    asker: Option<(OwnedFd, (u64, u64))>,
}

impl TunMtu {
    /// For the interface of `queue`.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn new(queue: &TunQueue) -> io::Result<TunMtu> {
        Ok(TunMtu {
            queue: queue.as_fd().try_clone_to_owned()?,
            asker: None,
        })
    }

    /// Another one of the same TUN.
    ///
    /// # Errors
    /// As [`TunMtu::new`].
    pub fn try_clone(&self) -> io::Result<TunMtu> {
        Ok(TunMtu {
            queue: self.queue.try_clone()?,
            asker: None,
        })
    }

    /// A descriptor of the TUN, to ask for other things than the MTU. Packets go by those of the workers.
    ///
    /// # Errors
    /// As [`TunMtu::new`].
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.queue.try_clone()
    }

    /// The MTU, in bytes.
    ///
    /// # Errors
    /// `EBADFD`: the interface is gone. `EPERM`: it is in a namespace that this process may not enter.
    pub fn get(&mut self) -> io::Result<u32> {
        let namespace = self.namespace()?;
        let identity = identity(&namespace)?;
        if self.asker.as_ref().is_none_or(|(_, asked)| *asked != identity) {
            self.asker = Some((socket_in(namespace)?, identity));
        }
        let (asker, _) = self.asker.as_ref().expect("it was set above");
        // SAFETY: an ifreq of zeros is one: integers, and a union of such.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: SIOCGIFMTU reads the name of one ifreq, which the kernel has just written, and writes its MTU.
        check(unsafe { libc::ioctl(asker.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
        // SAFETY: the MTU is what SIOCGIFMTU has written, and any bits are an int.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        u32::try_from(mtu).map_err(io::Error::other)
    }

    fn namespace(&self) -> io::Result<File> {
        // SAFETY: takes no argument.
        match check(unsafe { libc::ioctl(self.queue.as_raw_fd(), libc::TUNGETDEVNETNS) }) {
            // SAFETY: the ioctl just returned this descriptor, so nobody else owns it.
            Ok(fd) => Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) })),
            // Kernels that can't tell: it will not have been moved.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => own_namespace(),
            Err(error) => Err(error),
        }
    }
}

fn own_namespace() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

fn identity(namespace: &File) -> io::Result<(u64, u64)> {
    let metadata = namespace.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A socket that belongs to `namespace` for good.
fn socket_in(namespace: File) -> io::Result<OwnedFd> {
    if identity(&own_namespace()?)? == identity(&namespace)? {
        return udp::socket(Family::V4);
    }
    // A thread of its own goes there, and does not come back.
    let thread = std::thread::spawn(move || {
        // SAFETY: takes no pointers; concerns only the calling thread.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        udp::socket(Family::V4)
    });
    thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
