//! Both engines against the kernel: real sockets, real TUNs, in network namespaces of their own.

mod datagrams;
mod forward;
mod group;
mod lab;
mod no_uring;
mod pause;
mod refusals;
mod replace;
mod tun_device;
