//! The two clocks, in nanoseconds (clock_gettime(2)).

/// Nanoseconds since boot, time asleep included (CLOCK_BOOTTIME): keys must age while a laptop sleeps.
pub fn boot_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

/// Nanoseconds since 1970 (CLOCK_REALTIME): comparable to `Received::received_unix_ns`; may jump.
pub fn unix_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

/// Whether the kernel takes the real-time clock for synchronised, as an NTP client tells it (adjtimex(2)); `None` when it
/// does not say.
pub fn is_synchronized() -> Option<bool> {
    // SAFETY: timex is plain integers, for which zeros are values; modes = 0 changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: state is writable during the call.
    let result = unsafe { libc::adjtimex(&raw mut state) };
    (result >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: time is writable. The call can't fail: both clocks exist since Linux 2.6.39; if it did, the time is 0.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn the_clocks_are_what_they_say() {
        let started = boot_ns();
        let unix = u128::from(unix_ns());
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        assert!(system.abs_diff(unix) < Duration::from_secs(5).as_nanos());
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime_s: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!((uptime_s - started as f64 / 1e9).abs() < 5.0);
    }
}
