//! Numbers for people.

/// Bytes as `wg show` has them: "1.50 MiB".
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        // Not 1024: "1024.00 KiB" is what 1023.995 and more would be rounded to.
        if value < 1023.995 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    format!("{value:.2} {unit}")
}

/// A time as `wg show` has it: "1 day, 2 hours, 3 minutes, 4 seconds".
pub(super) fn duration(seconds: u64) -> String {
    if seconds == 0 {
        return "0 seconds".into();
    }
    let parts = [
        (seconds / (365 * 86400), "year"),
        (seconds / 86400 % 365, "day"),
        (seconds / 3600 % 24, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count} {unit}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    shown.join(", ")
}

/// Nanoseconds with three significant digits: "81.3 us", "1.20 ms".
pub(super) fn nanoseconds(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 999.5 => return format!("{ns:.0} ns"),
        ns if ns < 999.5e3 => (ns / 1e3, "us"),
        ns if ns < 999.5e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// A count with separated thousands: "1,234,567".
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bits per second, from bytes in a time: "9.81 Gbit/s".
pub(super) fn rate(bytes: u64, seconds: f64) -> String {
    let bits = bytes as f64 * 8.0 / seconds;
    let (value, unit) = match bits {
        bits if bits < 999.5 => return format!("{bits:.0} bit/s"),
        bits if bits < 999.5e3 => (bits / 1e3, "kbit/s"),
        bits if bits < 999.5e6 => (bits / 1e6, "Mbit/s"),
        bits => (bits / 1e9, "Gbit/s"),
    };
    format!("{value:.2} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_the_largest_unit_that_leaves_something() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (5 << 40, "5.00 TiB"),
            (u64::MAX, "16384.00 PiB"),
        ];
        for (value, expected) in cases {
            assert_eq!(bytes(value), expected);
        }
        let cases = [
            (0, "0 seconds"),
            (1, "1 second"),
            (62, "1 minute, 2 seconds"),
            (90061, "1 day, 1 hour, 1 minute, 1 second"),
            (31_536_000, "1 year"),
        ];
        for (value, expected) in cases {
            assert_eq!(duration(value), expected);
        }
        let cases = [
            (0.0, "0 ns"),
            (999.0, "999 ns"),
            (999.9, "1.00 us"),
            (81_300.0, "81.3 us"),
            (999_499.0, "999 us"),
            (999_600.0, "1.00 ms"),
            (2e9, "2.00 s"),
            (123e9, "123 s"),
        ];
        for (value, expected) in cases {
            assert_eq!(nanoseconds(value), expected);
        }
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (value, expected) in cases {
            assert_eq!(count(value), expected);
        }
        let cases = [(0, "0 bit/s"), (125, "1.00 kbit/s"), (1_226_250_000, "9.81 Gbit/s")];
        for (value, expected) in cases {
            assert_eq!(rate(value, 1.0), expected);
        }
    }
}
