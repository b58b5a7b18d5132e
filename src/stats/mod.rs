//! What is counted and timed: per worker while packets flow, summed and merged when somebody asks.
//!
//! Nothing here locks, allocates or reads a clock on the fast path. Counters are shared memory with one writer each;
//! histograms belong to one worker and change hands whole.
#![forbid(unsafe_code)]

pub mod buckets;
pub mod counters;
pub mod exposition;
pub mod hlog;
pub mod latency;
