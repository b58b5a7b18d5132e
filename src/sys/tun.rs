//! The TUN device: multi-queue, with virtio_net_hdr and offloads (Documentation/networking/tuntap.rst, linux/if_tun.h).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface name with its terminating zero (IFNAMSIZ, linux/if.h).
const NAME_ROOM: usize = 16;
/// Bytes of the virtio_net_hdr before each packet (linux/virtio_net.h, without num_buffers).
static VNET_HEADER_BYTES: libc::c_int = 10;

/// Which offloads the TUN gives and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Packets may come with a partial checksum (TUN_F_CSUM). The others need this one.
    pub csum: bool,
    /// TCP super-packets (TUN_F_TSO4, TUN_F_TSO6).
    pub tso: bool,
    /// UDP super-packets (TUN_F_USO4, TUN_F_USO6; since 6.2).
    pub uso: bool,
}

impl Offloads {
    /// Every offload there is.
    pub const ALL: Offloads = Offloads {
        csum: true,
        tso: true,
        uso: true,
    };
    /// None.
    pub const NONE: Offloads = Offloads {
        csum: false,
        tso: false,
        uso: false,
    };

    /// What to ask for, most wanted first, if the kernel refuses what stands before.
    fn steps(self) -> [Offloads; 4] {
        let csum = self.csum;
        let (tso, uso) = (self.tso && csum, self.uso && csum);
        [
            Offloads { csum, tso, uso },
            Offloads { csum, tso, uso: false },
            Offloads {
                csum,
                tso: false,
                uso: false,
            },
            Offloads::NONE,
        ]
    }

    fn flags(self) -> libc::c_uint {
        let choose = |on, flags| if on { flags } else { 0 };
        choose(self.csum, libc::TUN_F_CSUM)
            | choose(self.tso, libc::TUN_F_TSO4 | libc::TUN_F_TSO6)
            | choose(self.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }
}

/// Why there is no TUN.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name is empty, longer than 15 bytes, or has a slash, a colon, a space or a zero in it.
    #[error("{0:?} can't be an interface name: 1 to 15 bytes without '/', ':', white space or zero")]
    Name(String),
    /// No queue, or more than the kernel has.
    #[error("a TUN can't have {0} queues")]
    Queues(usize),
    /// /dev/net/tun does not exist.
    #[error(
        "{DEVICE} does not exist: load the module (modprobe tun), or give the container the device \
         (docker run --device {DEVICE})"
    )]
    NoDevice,
    /// Not permitted to open /dev/net/tun.
    #[error("not permitted to open {DEVICE}: run as root or give the container the device")]
    DeviceForbidden(#[source] io::Error),
    /// Not permitted to make an interface.
    #[error("not permitted to create the interface {0}: needs CAP_NET_ADMIN (run as root, or: unshare -Urn)")]
    Forbidden(String, #[source] io::Error),
    /// An interface of that name exists.
    #[error("an interface named {0} exists already; choose another name or remove it: ip link del {0}")]
    Exists(String),
    /// Anything else.
    #[error("{step}: {error}")]
    Os {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// A TUN interface that lives as long as one of its queues.
pub struct TunDevice {
    /// The interface's name.
    pub name: String,
    /// The interface's index.
    pub ifindex: u32,
    /// One per worker.
    pub queues: Vec<TunQueue>,
    /// The offloads that are on.
    pub offloads: Offloads,
}

/// One queue: reads give frames (10 bytes of virtio_net_hdr and an IP packet), writes take them. Non-blocking.
pub struct TunQueue {
    file: File,
}

/// struct ifreq (linux/if.h) as TUNSETIFF uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_ROOM],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// Creates the interface `name` with `queues` queues (a `%d` in the name becomes the first free number) and the
/// offloads among `want` that the kernel has. It is down and has no address.
///
/// # Errors
/// See [`TunError`].
pub fn create(name: &str, queues: usize, want: Offloads) -> Result<TunDevice, TunError> {
    check_name(name)?;
    // MAX_TAP_QUEUES (drivers/net/tun.c).
    if !(1..=256).contains(&queues) {
        return Err(TunError::Queues(queues));
    }
    let first = open()?;
    // TUN_EXCL: the name may be another tunnel's, whose queues we would share.
    let name = attach_queue(&first, name, libc::IFF_TUN_EXCL)?;
    let mut files = vec![first];
    for _ in 1..queues {
        let file = open()?;
        attach_queue(&file, &name, 0)?;
        files.push(file);
    }
    let offloads = set_offloads(&files[0], want)?;
    let ifindex = index(&name)?;
    Ok(TunDevice {
        name,
        ifindex,
        queues: files.into_iter().map(|file| TunQueue { file }).collect(),
        offloads,
    })
}

impl TunQueue {
    /// A queue that another process has attached, and set up as [`create`] does.
    pub fn inherited(fd: OwnedFd) -> TunQueue {
        TunQueue { file: fd.into() }
    }

    /// Another descriptor of the same queue.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<TunQueue> {
        Ok(TunQueue {
            file: self.file.try_clone()?,
        })
    }

    /// Anything that can be read, in place of a TUN.
    #[cfg(test)]
    pub(super) fn of_file(file: File) -> TunQueue {
        TunQueue { file }
    }

    /// Reads one frame into `frame`.
    pub(super) fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }
}

impl From<TunQueue> for OwnedFd {
    fn from(queue: TunQueue) -> OwnedFd {
        queue.file.into()
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The index of the interface `name` in the calling thread's network namespace.
pub fn index_of(name: &str) -> Option<u32> {
    index(name).ok()
}

pub(super) fn check_name(name: &str) -> Result<(), TunError> {
    let bad = |byte: u8| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() >= NAME_ROOM || name.bytes().any(bad) {
        return Err(TunError::Name(name.to_owned()));
    }
    Ok(())
}

pub(super) fn open() -> Result<File, TunError> {
    let result = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE);
    result.map_err(|error| match error.raw_os_error() {
        // ENODEV, ENXIO: the node exists, the driver does not.
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
        Some(libc::EACCES | libc::EPERM) => TunError::DeviceForbidden(error),
        _ => TunError::Os {
            step: "opening /dev/net/tun",
            error,
        },
    })
}

/// Makes `file` a queue of the interface `name`, with virtio_net_hdrs; the name that it has.
fn attach_queue(file: &File, name: &str, extra: libc::c_int) -> Result<String, TunError> {
    let name = attach(file, name, libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | extra)?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const VNET_HEADER_BYTES) };
    if result != 0 {
        return Err(os("setting the header size (TUNSETVNETHDRSZ)"));
    }
    Ok(name)
}

/// Makes `file` the interface `name`, or a queue of it; the name that it has.
pub(super) fn attach(file: &File, name: &str, extra: libc::c_int) -> Result<String, TunError> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | extra;
    // IFF_TUN_EXCL is the sign bit of the 16-bit field.
    let low = u16::try_from(flags)
        .expect("interface flags are 16 bits wide")
        .cast_signed();
    let mut request = InterfaceRequest {
        name: [0; NAME_ROOM],
        flags: low,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, whose size and layout InterfaceRequest has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TunError::Forbidden(name.to_owned(), error),
            // EINVAL: an interface of that name that is not a TUN.
            Some(libc::EBUSY | libc::EEXIST) => TunError::Exists(name.to_owned()),
            Some(libc::EINVAL) if index(name).is_ok() => TunError::Exists(name.to_owned()),
            Some(libc::E2BIG) => TunError::Queues(256),
            _ => TunError::Os {
                step: "creating the interface (TUNSETIFF)",
                error,
            },
        });
    }
    let len = request.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_ROOM);
    Ok(String::from_utf8_lossy(&request.name[..len]).into_owned())
}

/// Switches on what the kernel has of `want`, for the whole device.
fn set_offloads(file: &File, want: Offloads) -> Result<Offloads, TunError> {
    for offloads in want.steps() {
        let flags = libc::c_ulong::from(offloads.flags());
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
        if result == 0 {
            return Ok(offloads);
        }
    }
    Err(os("switching all offloads off (TUNSETOFFLOAD)"))
}

pub(super) fn index(name: &str) -> Result<u32, TunError> {
    let name = std::ffi::CString::new(name).map_err(|_| TunError::Name(name.to_owned()))?;
    // SAFETY: name is a zero-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        Err(os("looking up the interface (if_nametoindex)"))
    } else {
        Ok(index)
    }
}

fn os(step: &'static str) -> TunError {
    TunError::Os {
        step,
        error: io::Error::last_os_error(),
    }
}
