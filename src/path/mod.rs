//! The sans-IO data path: what happens to a packet between the TUN and the UDP socket, in both directions.
#![forbid(unsafe_code)]

pub mod coalesce;
pub mod drops;
pub mod icmp;
pub mod route;
pub mod segment;

#[cfg(test)]
mod sample;
