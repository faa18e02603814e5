//! The screen of `strata top`: plain terminal control sequences (ECMA-48), and only the rows that changed are written.
//! Whatever ends the process, the terminal is as it was before.

use std::io::{self, Write, stdout};
use std::sync::Once;

use super::view::Lines;
use super::winsize;
use crate::terminal::Raw;

/// To the alternate screen, without a cursor, long lines cut off.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &[u8] = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// How a row looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Bold,
    Reversed,
}

type Row = (String, Look);

/// The terminal while `top` has it.
pub(crate) struct Screen {
    /// What is on it, with its size.
    shown: Option<((u16, u16), Vec<Row>)>,
    _raw: Raw,
}

impl Screen {
    /// Takes the terminal. `None`: standard input is none, or is not ours to read.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let Some(raw) = Raw::enter() else { return Ok(None) };
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let then = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                let _ = stdout().write_all(LEAVE);
                then(panic);
            }));
        });
        stdout().write_all(ENTER)?;
        Ok(Some(Self { shown: None, _raw: raw }))
    }

    /// Shows these lines from `from` on, under `title`.
    pub(crate) fn draw(&mut self, title: &str, lines: &Lines, from: usize) -> io::Result<()> {
        let size = size();
        let rows = compose(size, title, lines, from);
        let before = self.shown.take().filter(|(then, _)| *then == size).map(|(_, rows)| rows);
        let mut out = stdout().lock();
        out.write_all(&difference(before.as_deref(), &rows))?;
        out.flush()?;
        self.shown = Some((size, rows));
        Ok(())
    }

    /// Lines there is room for below the title.
    pub(crate) fn height(&self) -> usize {
        usize::from(size().1).saturating_sub(1)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = stdout().write_all(LEAVE);
        let _ = stdout().flush();
    }
}

/// Columns and rows; a terminal that does not know has 80 by 24.
fn size() -> (u16, u16) {
    winsize::of(&stdout()).ok().filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or((80, 24))
}

/// As many rows as the screen has, none wider than it is.
fn compose((columns, rows): (u16, u16), title: &str, lines: &Lines, from: usize) -> Vec<Row> {
    let width = usize::from(columns);
    // A machine's name cannot hold control characters, but what its devices are called comes from outside.
    let cut = |text: &str| -> String {
        text.chars().take(width).map(|c| if c.is_control() { '?' } else { c }).collect()
    };
    let title = (cut(&format!("{title:width$}")), Look::Reversed);
    let body = lines.iter().skip(from).map(|(line, head)| {
        let look = if *head { Look::Bold } else { Look::Plain };
        (cut(line), look)
    });
    let empty = std::iter::repeat((String::new(), Look::Plain));
    std::iter::once(title).chain(body).chain(empty).take(usize::from(rows)).collect()
}

/// What turns one screen into the other; `None`: nothing is known about what is there.
fn difference(before: Option<&[Row]>, now: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    if before.is_none() {
        out.extend_from_slice(b"\x1b[0m\x1b[2J");
    }
    for (at, row) in now.iter().enumerate() {
        if before.and_then(|rows| rows.get(at)) == Some(row) {
            continue;
        }
        let look = match row.1 {
            Look::Plain => "",
            Look::Bold => "\x1b[1m",
            Look::Reversed => "\x1b[7m",
        };
        out.extend_from_slice(format!("\x1b[{};1H{look}{}\x1b[0m\x1b[K", at + 1, row.0).as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_has_a_title_bold_heads_and_what_fits() {
        let lines: Lines = [("zero", false), ("HEAD", true), ("a long line, cut", false), ("no", false)]
            .map(|(line, head)| (line.to_owned(), head))
            .into();
        let rows = compose((10, 3), "top", &lines, 1);
        let row = |text: &str, look| (text.to_owned(), look);
        assert_eq!(
            rows,
            [row("top       ", Look::Reversed), row("HEAD", Look::Bold), row("a long lin", Look::Plain)]
        );
        assert_eq!(compose((10, 6), "top", &lines, 3).len(), 6);
        assert_eq!(compose((4, 2), "", &vec![("a\x1b[2J".into(), false)], 0)[1].0, "a?[2");
        assert!(compose((0, 0), "top", &lines, 0).is_empty());
    }

    #[test]
    fn only_rows_that_changed_are_written() {
        let rows = |second: &str| vec![("top".to_owned(), Look::Reversed), (second.to_owned(), Look::Plain)];
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(difference(Some(&rows("exits 1")), &rows("exits 2"))),
            "\x1b[2;1Hexits 2\x1b[0m\x1b[K"
        );
        assert_eq!(difference(Some(&rows("same")), &rows("same")), b"");
        let all = text(difference(None, &rows("x")));
        assert!(all.starts_with("\x1b[0m\x1b[2J\x1b[1;1H\x1b[7mtop"), "{all:?}");
    }
}
