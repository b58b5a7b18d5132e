//! The kernel's side: the only unsafe code of ringway. One kernel feature per file, and two engines behind one trait.
#![warn(clippy::cast_possible_truncation)]

pub mod engine;
mod mapping;
mod pool;
