use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::args::Format;

/// Prints a value as text or as JSON, as the user asked.
pub(super) fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
    match format {
        Format::Text => write(text(value)),
        Format::Json => write(serde_json::to_string_pretty(value)? + "\n"),
    }
}

/// Writes to standard output and flushes. Unlike `print!`, a closed pipe is an error, not a panic.
pub(super) fn write(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()
}

/// What clears the screen before a new reading; nothing where the output is no terminal.
pub(super) fn clear() -> &'static str {
    if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" }
}
