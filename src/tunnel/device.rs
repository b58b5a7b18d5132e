//! A TUN that the system sends packets to, for a program that moves them itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::builder::Builder;
use super::check;
use super::error::Error;
use super::keeper::{Keeper, Plan};
use super::statistics::Statistics;
use crate::link::{Counters, MTU_DEFAULT};
use crate::sys::device::{self, DeviceName};
use crate::sys::tun_packets::PacketTun;

/// An interface with its addresses, routes and name servers, made by [`Builder::establish`]. Packets that the system sends
/// there are [received](Device::recv) here, one IP packet at a time without any header before it, and what is
/// [sent](Device::send) here reaches the system.
///
/// All methods take `&self`: threads may share a device. Dropping it puts everything back.
pub struct Device {
    // Put back before the interface goes.
    keeper: Keeper,
    tun: PacketTun,
    session: Option<String>,
    mark: Option<u32>,
    bind_interface: Option<DeviceName>,
    /// What had been counted at the last reset.
    baseline: Mutex<Statistics>,
}

impl Device {
    pub(super) fn establish(builder: Builder) -> Result<Device, Error> {
        let tun = PacketTun::create(&builder.name)?;
        let session = builder.session.clone();
        let bind_interface = builder.routing.bind_interface.as_deref().and_then(DeviceName::new);
        let (keeper, mark) = Keeper::start(Plan {
            ifindex: tun.ifindex(),
            mtu: builder.mtu.unwrap_or(MTU_DEFAULT),
            builder,
        })?;
        Ok(Device {
            keeper,
            tun,
            session,
            mark,
            bind_interface,
            baseline: Mutex::default(),
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        self.tun.name()
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        self.tun.ifindex()
    }

    /// What people call the tunnel.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Takes a packet that the system sends into the tunnel, and waits for one. Returns its length in bytes; of a packet that is
    /// longer than `packet`, which none is where that has the MTU's length, the rest is lost.
    ///
    /// # Errors
    /// `EBADFD` once somebody has removed the interface.
    pub fn recv(&self, packet: &mut [u8]) -> io::Result<usize> {
        self.tun.recv(packet, None)
    }

    /// As [`Device::recv`], but waits no longer than `patience`; not at all where that is zero.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when no packet came in time.
    pub fn recv_timeout(&self, packet: &mut [u8], patience: Duration) -> io::Result<usize> {
        self.tun.recv(packet, Some(patience))
    }

    /// Gives the system one IP packet, as if it had come in by the interface. Never waits.
    ///
    /// # Errors
    /// `EINVAL`: not an IP packet. `EIO`: somebody has taken the interface down.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.tun.send(packet)
    }

    /// Lets the packets of `socket` leave outside of the tunnel, though routes lead into it: to be called for the socket that
    /// carries the tunnel, before it connects.
    ///
    /// It is marked, so that rules lead it around default routes (or around all routes, see [`Builder::fwmark`]), and bound to the
    /// interface of [`Builder::bind_interface`]. Where there is neither a default route nor one of these two, nothing needs to
    /// be gone around, and this does nothing.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN; `ENODEV` when the interface to bind to is not there.
    pub fn protect(&self, socket: &impl AsFd) -> io::Result<()> {
        if let Some(mark) = self.mark {
            device::mark(socket.as_fd(), mark)?;
        }
        if let Some(name) = self.bind_interface {
            device::bind(socket.as_fd(), name)?;
        }
        Ok(())
    }

    /// The mark of protected sockets, if there is one.
    pub fn fwmark(&self) -> Option<u32> {
        self.mark
    }

    /// The interface's MTU in bytes, whoever has set it.
    ///
    /// # Errors
    /// What the kernel says, for example that the interface was removed.
    pub fn mtu(&self) -> Result<u32, Error> {
        Ok(self.keeper.counters()?.mtu)
    }

    /// Changes the interface's MTU while packets flow, to 576 to 65535 bytes.
    ///
    /// # Errors
    /// [`Error::Argument`], or what the kernel says.
    pub fn set_mtu(&self, bytes: u16) -> Result<(), Error> {
        check::check_mtu("set_mtu", bytes)?;
        self.keeper.set_mtu(bytes)
    }

    /// What the kernel has counted at the interface since it was made, or since [`Device::reset_statistics`].
    ///
    /// # Errors
    /// What the kernel says, for example that the interface was removed.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        let baseline = *self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Statistics::from(self.keeper.counters()?) - baseline)
    }

    /// As [`Device::statistics`], which begin anew with this: no packet is in both, and none is lost between them.
    ///
    /// # Errors
    /// As there; nothing begins anew then.
    pub fn reset_statistics(&self) -> Result<Statistics, Error> {
        let mut baseline = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        let total = Statistics::from(self.keeper.counters()?);
        let before = std::mem::replace(&mut *baseline, total);
        Ok(total - before)
    }

    /// Puts the system back as it was and removes the interface, as dropping does, but says what went wrong.
    ///
    /// # Errors
    /// The first thing that could not be put back; everything else was.
    pub fn disconnect(self) -> Result<(), Error> {
        self.keeper.end()
    }
}

/// The descriptor of the TUN, which does not block: for poll, epoll and runtimes.
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("tun", &self.tun).finish_non_exhaustive()
    }
}

impl From<Counters> for Statistics {
    fn from(counters: Counters) -> Statistics {
        Statistics {
            tx_packets: counters.tx_packets,
            tx_bytes: counters.tx_bytes,
            rx_packets: counters.rx_packets,
            rx_bytes: counters.rx_bytes,
            dropped: counters.tx_dropped + counters.rx_dropped,
        }
    }
}
