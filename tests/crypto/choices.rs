//! Which backends of `crypto` run on this machine. The CPU is asked and not the self-test, since a kernel that is broken would
//! fail that, and would be left out where it has to be found.

use ringway::crypto::{Choice, self_test};

/// The choices whose features this CPU has; a line names each of the others.
///
/// # Panics
/// When one of them does not pass its self-test.
pub(crate) fn choices() -> impl Iterator<Item = Choice> {
    Choice::ALL.into_iter().filter(|&choice| {
        if let Some(feature) = lacking(choice) {
            println!("skipped: no {feature} here: backend {choice} was not run");
            return false;
        }
        if let Err(error) = self_test(choice) {
            panic!("{error}, although the CPU has the features");
        }
        true
    })
}

/// What the CPU lacks for `choice`.
#[cfg(target_arch = "x86_64")]
fn lacking(choice: Choice) -> Option<&'static str> {
    let vaes = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("bmi2");
    let avx512 = vaes
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2");
    match choice {
        Choice::Avx512 if !avx512 => Some("AVX-512"),
        Choice::Vaes if !vaes => Some("VAES"),
        _ => None,
    }
}

/// What the CPU lacks for `choice`.
#[cfg(not(target_arch = "x86_64"))]
fn lacking(choice: Choice) -> Option<&'static str> {
    match choice {
        Choice::Avx512 => Some("AVX-512"),
        Choice::Vaes => Some("VAES"),
        _ => None,
    }
}
