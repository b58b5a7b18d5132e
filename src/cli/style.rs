//! Colours, those of `wg show`, where a person looks.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal as _};

/// Colours or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    is_on: bool,
}

impl Style {
    /// For standard output.
    pub(super) fn of_stdout() -> Style {
        Style {
            is_on: wants_colour(io::stdout().is_terminal()),
        }
    }

    #[cfg(test)]
    pub(super) const PLAIN: Style = Style { is_on: false };
    #[cfg(test)]
    pub(super) const COLOURED: Style = Style { is_on: true };

    /// The word that begins an interface's block.
    pub(super) fn interface<T: Display>(self, value: T) -> Painted<T> {
        self.paint("1;32", value)
    }

    /// The word that begins a peer's block.
    pub(super) fn peer<T: Display>(self, value: T) -> Painted<T> {
        self.paint("1;33", value)
    }

    /// The word that begins a worker's block.
    pub(super) fn worker<T: Display>(self, value: T) -> Painted<T> {
        self.paint("1;36", value)
    }

    /// What a line is about.
    pub(super) fn label<T: Display>(self, value: T) -> Painted<T> {
        self.paint("1", value)
    }

    /// What is as it should be.
    pub(super) fn plain<T: Display>(self, value: T) -> Painted<T> {
        Painted { sgr: None, value }
    }

    /// What should not be.
    pub(super) fn alarm<T: Display>(self, value: T) -> Painted<T> {
        self.paint("31", value)
    }

    /// `sgr`: parameters of ECMA-48's "select graphic rendition".
    fn paint<T: Display>(self, sgr: &'static str, value: T) -> Painted<T> {
        Painted {
            sgr: self.is_on.then_some(sgr),
            value,
        }
    }
}

/// A value in colour, or not. Widths apply to the value alone.
pub(super) struct Painted<T> {
    sgr: Option<&'static str>,
    value: T,
}

impl<T: Display> Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(sgr) = self.sgr else { return self.value.fmt(f) };
        write!(f, "\x1b[{sgr}m")?;
        self.value.fmt(f)?;
        f.write_str("\x1b[0m")
    }
}

/// Whether a stream gets colours: a terminal that has them, unless NO_COLOR is set (<https://no-color.org>).
pub(super) fn wants_colour(is_terminal: bool) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    is_terminal && !is_set("NO_COLOR") && !is_dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_do_not_count_colours() {
        assert_eq!(format!("{:>4}", Style::PLAIN.label("ab")), "  ab");
        assert_eq!(format!("{:>4}", Style::COLOURED.label("ab")), "\x1b[1m  ab\x1b[0m");
    }

    #[test]
    fn what_is_no_terminal_gets_no_colours() {
        assert!(!wants_colour(false));
    }
}
