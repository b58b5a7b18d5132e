//! The sans-IO data path: what happens to a packet between the TUN and the UDP socket, in both directions.
#![forbid(unsafe_code)]

pub mod capture;
pub mod coalesce;
pub mod drops;
mod ecn;
pub mod forward;
pub mod gso;
pub mod icmp;
mod lane_port;
mod loops;
mod peer;
pub mod peers;
pub mod report;
pub mod route;
pub mod segment;
mod sessions;
mod waiting;

#[cfg(test)]
mod sample;
