//! The `ringway` program: daemon and tools.

fn main() {}
