//! The terminal while `top` has it: its second screen, without a cursor, keys one by one; as it was afterwards.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use crate::sys::terminal::{self, RawKeys};

/// xterm's second screen on and off (DECSET 1049), the cursor hidden and shown (DECTCEM).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// ECMA-48: cursor home; erase to the line's end; erase to the screen's end.
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_REST: &str = "\x1b[J";

/// What a terminal without a size is taken for.
const SIZE_DEFAULT: (u16, u16) = (80, 24);

pub(super) struct Screen {
    /// `None`: standard input is no terminal, so there are no keys.
    keys: Option<RawKeys>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Screen> {
        let keys = RawKeys::on(io::stdin().as_fd()).ok();
        let screen = Screen { keys };
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(screen)
    }

    /// Shows as many lines as there is room for, each as far as it fits.
    pub(super) fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let size = terminal::size(io::stdout().as_fd()).unwrap_or(SIZE_DEFAULT);
        let (columns, rows) = if size.0 == 0 || size.1 == 0 { SIZE_DEFAULT } else { size };
        let fitted: Vec<String> = lines
            .iter()
            .take(usize::from(rows))
            .map(|line| fit(line, usize::from(columns)))
            .collect();
        let text = fitted.join(&format!("{ERASE_LINE}\r\n"));
        // In one piece, so that the terminal shows no half of it.
        let mut out = io::stdout().lock();
        write!(out, "{HOME}{text}{ERASE_LINE}{ERASE_REST}")?;
        out.flush()
    }

    /// Waits for a key for at most `patience`.
    pub(super) fn key(&mut self, patience: Duration) -> io::Result<Option<u8>> {
        let Some(keys) = &self.keys else {
            std::thread::sleep(patience);
            return Ok(None);
        };
        match keys.wait(patience) {
            Ok(bytes) => Ok(bytes.first().copied()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
    }
}

/// The first `columns` characters of a line; colours take no room.
fn fit(line: &str, columns: usize) -> String {
    let mut out = String::with_capacity(line.len());
    let (mut used, mut in_colour) = (0, false);
    for c in line.chars() {
        match c {
            '\x1b' => in_colour = true,
            'm' if in_colour => {
                in_colour = false;
                out.push(c);
                continue;
            }
            _ => {}
        }
        if !in_colour {
            if used == columns {
                continue;
            }
            used += 1;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_the_terminal_does_and_colours_are_closed() {
        assert_eq!(fit("abcdef", 4), "abcd");
        assert_eq!(fit("\x1b[1mabc\x1b[0mdef", 2), "\x1b[1mab\x1b[0m");
        assert_eq!(fit("ab", 4), "ab");
    }
}
