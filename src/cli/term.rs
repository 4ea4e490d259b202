//! What reaches the terminal goes through here: results to standard output, messages to standard error.
//!
//! A reader that went away (`lacuna openapi | head`) is no error.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// Writes a line to standard output.
pub fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Writes to standard output without ending the line.
pub fn part(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

/// Writes a line to standard error.
pub fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A person looks at standard output, and wants colours.
#[must_use]
pub fn is_live() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Columns of the terminal; 80 when it does not say.
#[must_use]
pub fn width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|&n: &usize| n >= 20).unwrap_or(80)
}
