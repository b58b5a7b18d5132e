//! The terminal: single keys without waiting for a line (termios(3)), and its size (TIOCGWINSZ, ioctl_tty(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A terminal in which keys come one by one and are not shown; as it was before once this is dropped.
pub struct RawKeys {
    terminal: OwnedFd,
    before: libc::termios,
}

impl RawKeys {
    /// Switches the terminal over. Signals still come from its keys (Ctrl-C).
    ///
    /// # Errors
    /// `ENOTTY`: it is no terminal. `EMFILE`, `ENFILE`.
    pub fn on(terminal: BorrowedFd<'_>) -> io::Result<RawKeys> {
        let terminal = terminal.try_clone_to_owned()?;
        let before = attributes(terminal.as_fd())?;
        let mut raw = before;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO);
        raw.c_cc[libc::VMIN] = 0;
        raw.c_cc[libc::VTIME] = 0;
        set_attributes(terminal.as_fd(), &raw)?;
        Ok(RawKeys { terminal, before })
    }

    /// Waits for a key for at most `patience`: the bytes that came, none when it was in vain.
    ///
    /// # Errors
    /// `EINTR`; what poll(2) and read(2) say.
    pub fn wait(&self, patience: Duration) -> io::Result<Vec<u8>> {
        let mut poll = libc::pollfd {
            fd: self.terminal.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: poll is one pollfd, writable during the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match ready {
            0 => Ok(Vec::new()),
            ready if ready < 0 => Err(io::Error::last_os_error()),
            _ => self.read(),
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = [0u8; 64];
        // SAFETY: bytes is writable for its length during the call.
        let len = unsafe { libc::read(self.terminal.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        match usize::try_from(len) {
            // Ready, and nothing to read: it has hung up.
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(bytes[..len].to_vec()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for RawKeys {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = set_attributes(self.terminal.as_fd(), &self.before);
    }
}

/// Columns and rows of a terminal.
///
/// # Errors
/// `ENOTTY`: it is no terminal.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which size is.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((size.ws_col, size.ws_row))
}

fn attributes(terminal: BorrowedFd<'_>) -> io::Result<libc::termios> {
    // SAFETY: termios is plain integers, for which zeros are values.
    let mut attributes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: attributes is writable during the call.
    let result = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut attributes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes)
}

fn set_attributes(terminal: BorrowedFd<'_>, attributes: &libc::termios) -> io::Result<()> {
    // SAFETY: attributes is readable during the call.
    let result = unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSADRAIN, attributes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_no_terminal_is_told_so() {
        let file = std::fs::File::open("/dev/null").expect("every machine has it");
        assert_eq!(
            size(file.as_fd()).map_err(|error| error.raw_os_error()),
            Err(Some(libc::ENOTTY))
        );
        assert!(RawKeys::on(file.as_fd()).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTTY)));
    }

    #[test]
    fn a_terminal_gives_keys_one_by_one_and_is_put_back() {
        let terminal = nix::pty::openpty(None, None).expect("a pseudo-terminal");
        let mode = || attributes(terminal.slave.as_fd()).expect("a terminal").c_lflag;
        let before = mode();
        let keys = RawKeys::on(terminal.slave.as_fd()).expect("a terminal");
        assert_eq!(mode() & (libc::ICANON | libc::ECHO), 0);
        assert_eq!(keys.wait(Duration::ZERO).expect("it is open"), b"");
        let mut keyboard = std::fs::File::from(terminal.master);
        keyboard.write_all(b"q").expect("it is open");
        assert_eq!(keys.wait(Duration::from_secs(10)).expect("it is open"), b"q");
        drop(keys);
        assert_eq!(mode(), before);
    }
}
