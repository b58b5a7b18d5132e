//! What every WireGuard implementation is put through: NATs, roaming, several addresses and links, loops, fragments,
//! marks, forged packets and odd keys. The ideas are those of wireguard-go's tests/netns.sh and of the kernel's selftests
//! of the same name. Needs root and wireguard-tools; elsewhere each test prints why it is skipped and passes.
//!
//! Where the suite may matter, a pair of devices of each suite goes through the same at the same time.

#[path = "../uapi/device.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of it")]
mod device;
mod hostile;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of it")]
mod lab;
mod links;
mod nat;
mod packets;
mod pair;
mod roaming;
#[path = "../netns/traffic.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of it")]
mod traffic;
