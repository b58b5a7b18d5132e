//! `genkey`, `pubkey` and `genpsk`, as those of `wg`.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use crate::config::{PresharedKey, PrivateKey, PublicKey};

/// Input that is longer is no key with white space after it.
const INPUT_LEN_MAX: u64 = 1024;

pub(super) fn genkey() -> Result<(), Failure> {
    let random = random()?;
    write_secret(&PrivateKey::generate(|bytes| bytes.copy_from_slice(&random[..])).to_base64())
}

pub(super) fn genpsk() -> Result<(), Failure> {
    let random = random()?;
    write_secret(&PresharedKey::generate(|bytes| bytes.copy_from_slice(&random[..])).to_base64())
}

pub(super) fn pubkey() -> Result<(), Failure> {
    let mut text = Zeroizing::new(String::with_capacity(INPUT_LEN_MAX as usize + 1));
    io::stdin().lock().take(INPUT_LEN_MAX + 1).read_to_string(&mut text)?;
    let public = public_key_of(&text).map_err(|error| {
        Failure::new(
            Exit::Invalid,
            format!("standard input is no private key: {error}; try \"ringway genkey\""),
        )
    })?;
    writeln!(io::stdout(), "{public}")?;
    Ok(())
}

/// White space after the key is fine, before it is not: as `wg`.
fn public_key_of(text: &str) -> Result<PublicKey, String> {
    let text = text.trim_end_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    PrivateKey::from_base64_even_zero(text)
        .map(|key| key.public_key())
        .map_err(|error| error.to_string())
}

fn random() -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..])
        .map_err(|error| Failure::new(Exit::Failure, format!("the kernel gives no random bytes: {error}")))?;
    Ok(bytes)
}

fn write_secret(key: &str) -> Result<(), Failure> {
    if is_open_to_the_world(&File::from(io::stdout().as_fd().try_clone_to_owned()?)) {
        let warning = "ringway: warning: others can read or write the file that this key goes to; use \"umask 077\"";
        writeln!(io::stderr(), "{warning}")?;
    }
    writeln!(io::stdout(), "{key}")?;
    Ok(())
}

/// A regular file that everybody may access, as `wg` asks before it warns; pipes and terminals are none.
fn is_open_to_the_world(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o007 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_white_space_may_follow_the_key() {
        const KEY: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
        let expected = "9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=";
        for text in [KEY.to_owned(), format!("{KEY}\n"), format!("{KEY}\r\n\n \t")] {
            assert_eq!(public_key_of(&text).unwrap().to_string(), expected);
        }
        for text in [
            format!(" {KEY}"),
            format!("{KEY}\nx"),
            format!("{KEY}{KEY}"),
            String::new(),
            KEY[..43].into(),
        ] {
            assert!(public_key_of(&text).is_err(), "{text:?}");
        }
    }
}
