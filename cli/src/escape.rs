//! Ctrl-]: the one key of the terminal that is ours and not the guest's.

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What the person at the terminal wants of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// Ctrl-] was pressed; the next key decides.
    Asked,
    /// Press the power button.
    Quit,
    /// End the machine now.
    Kill,
    /// Leave the console.
    Detach,
}

/// What Ctrl-] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing: the input is no terminal, all bytes are the guest's.
    Transparent,
    /// It waits for a second key: `q`, `k`, Ctrl-] itself, or any other to go on.
    Run,
    /// It detaches.
    Attach,
}

/// What is told after Ctrl-] under [`Mode::Run`].
pub(crate) const CHOICES: &str =
    "strata: q presses the power button, k kills the machine, Ctrl-] sends Ctrl-], any other key goes on";

/// The scanner over the bytes typed.
#[derive(Debug)]
pub(crate) struct Escape {
    mode: Mode,
    asked: bool,
}

impl Escape {
    pub(crate) fn new(mode: Mode) -> Self {
        Self { mode, asked: false }
    }

    /// Puts what is for the guest into `out` and reports each key that is for us.
    pub(crate) fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>, mut key: impl FnMut(Key)) {
        for byte in typed {
            match (self.mode, *byte, std::mem::take(&mut self.asked)) {
                (Mode::Attach, ESCAPE, _) => {
                    key(Key::Detach);
                    return;
                }
                (Mode::Run, ESCAPE, false) => {
                    self.asked = true;
                    key(Key::Asked);
                }
                (Mode::Run, b'q' | b'Q', true) => key(Key::Quit),
                (Mode::Run, b'k' | b'K', true) => key(Key::Kill),
                (Mode::Run, ESCAPE, true) => out.push(ESCAPE),
                (Mode::Run, _, true) => {}
                (_, byte, _) => out.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(mode: Mode, pieces: &[&[u8]]) -> (Vec<u8>, Vec<Key>) {
        let mut escape = Escape::new(mode);
        let (mut out, mut keys) = (Vec::new(), Vec::new());
        for piece in pieces {
            escape.feed(piece, &mut out, |key| keys.push(key));
        }
        (out, keys)
    }

    #[test]
    fn only_the_key_after_the_escape_is_ours() {
        let (out, keys) = typed(Mode::Run, &[b"q\x03\x1d", b"qk"]);
        assert_eq!((out.as_slice(), keys.as_slice()), (&b"q\x03k"[..], &[Key::Asked, Key::Quit][..]));
        let (out, keys) = typed(Mode::Run, &[b"\x1dk"]);
        assert_eq!((out.as_slice(), keys.as_slice()), (&b""[..], &[Key::Asked, Key::Kill][..]));
        let (out, keys) = typed(Mode::Run, &[b"a\x1dxb\x1d\x1dc"]);
        assert_eq!((out.as_slice(), keys.as_slice()), (&b"ab\x1dc"[..], &[Key::Asked, Key::Asked][..]));
    }

    #[test]
    fn an_attached_terminal_detaches_at_once() {
        let (out, keys) = typed(Mode::Attach, &[b"ls\x1drest"]);
        assert_eq!((out.as_slice(), keys.as_slice()), (&b"ls"[..], &[Key::Detach][..]));
    }

    #[test]
    fn a_pipe_is_passed_unread() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(typed(Mode::Transparent, &[&all]), (all, vec![]));
    }
}
