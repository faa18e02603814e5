//! Sizes and durations: what is read, what is refused, and that what is written reads back.

use std::time::Duration;

use crate::size::{NumberOrText, Size, read_duration, write_duration};

#[test]
fn sizes_are_powers_of_1024_and_plain_numbers_are_mib() {
    for (text, bytes) in [
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("6G", 6 << 30),
        ("1GiB", 1 << 30),
        ("1T", 1 << 40),
        ("64K", 64 << 10),
        ("256", 256 << 20),
        ("0", 0),
    ] {
        assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
    }
    assert_eq!(Size::read(&NumberOrText::Number(256)), Ok(Size(256 << 20)));
}

#[test]
fn other_sizes_are_refused() {
    for text in
        ["", "M", "-1M", "1.5G", "1 G", "512MB", "512 MiB", "G1", "99999999999999999999", "16777216T", "٣M"]
    {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
    assert!(Size::read(&NumberOrText::Number(-1)).is_err());
    assert!(Size::read(&NumberOrText::Number(i64::MAX)).is_err());
}

/// xorshift64: the same numbers in every run.
fn numbers(count: usize) -> impl Iterator<Item = u64> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
    .take(count)
}

#[test]
fn every_size_reads_back_as_it_was_written() {
    for number in numbers(10_000) {
        let size = Size((number >> (number % 64)) & !1023);
        assert_eq!(size.to_string().parse::<Size>(), Ok(size), "{size}");
    }
}

#[test]
fn no_text_makes_a_size_panic() {
    const LETTERS: &[u8] = b"0123456789kmgtKMGTib -+.";
    for number in numbers(10_000) {
        let length = (number % 12) as usize;
        let letter = |i| char::from(LETTERS[(number >> (i * 5)) as usize % LETTERS.len()]);
        let text: String = (0..length).map(letter).collect();
        if let Ok(size) = text.parse::<Size>() {
            assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{text}: {size}");
        }
    }
}

#[test]
fn durations_have_units_and_plain_numbers_are_seconds() {
    for (text, duration) in [
        ("30", Duration::from_secs(30)),
        ("30s", Duration::from_secs(30)),
        ("500ms", Duration::from_millis(500)),
        ("2m", Duration::from_secs(120)),
    ] {
        assert_eq!(read_duration(&text.into()), Ok(duration));
        assert_eq!(read_duration(&write_duration(duration)), Ok(duration));
    }
    for text in ["", "s", "-1", "1.5", "2h", "1 s", "99999999999999999999s", "9999999999999999999m"] {
        assert!(read_duration(&text.into()).is_err(), "{text}");
    }
}
