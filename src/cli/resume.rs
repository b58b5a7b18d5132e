//! The argument that one version of a program gives to the next when it executes it. It is for no person, so clap, help,
//! man pages and completions know nothing of it.

use std::ffi::OsString;

use super::exit::{Exit, Failure};
use crate::control::handover::RESUME_ARGUMENT;

/// The command line without it, and the descriptor that it names.
pub(super) fn split(arguments: impl IntoIterator<Item = OsString>) -> Result<(Vec<OsString>, Option<i32>), Failure> {
    let mut arguments = arguments.into_iter();
    let (mut rest, mut number) = (Vec::new(), None);
    while let Some(argument) = arguments.next() {
        if argument != RESUME_ARGUMENT {
            rest.push(argument);
            continue;
        }
        let value = arguments.next().and_then(|value| value.to_str()?.parse().ok());
        number = Some(value.ok_or_else(|| {
            let text = format!("{RESUME_ARGUMENT} is followed by the number of a descriptor, and is not for people");
            Failure::new(Exit::Usage, text)
        })?);
    }
    Ok((rest, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_is_taken_out_of_the_command_line() {
        let split = |words: &[&str]| split(words.iter().map(OsString::from));
        let (rest, number) = split(&["ringway", "run", "--resume", "7", "x.toml"]).unwrap();
        assert_eq!(
            (number, rest),
            (Some(7), ["ringway", "run", "x.toml"].map(OsString::from).into())
        );
        assert_eq!(split(&["ringway-wg", "wg0"]).unwrap().1, None);
        for wrong in [&["x", "--resume"][..], &["x", "--resume", "wg0"]] {
            assert_eq!(split(wrong).unwrap_err().exit, Exit::Usage);
        }
    }
}
