//! Lines of any length, read within a bound of memory. Knows nothing of what they hold.

use std::io::{self, BufRead};

/// Bytes of a line. The daemon takes no larger body by default, and no SDK makes one of a tenth of that.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How much is kept of a line that is longer, in bytes: enough to recognise it by.
const BEGINNING_BYTES: usize = 1024;

/// What a line holds, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Whole(&'a [u8]),
    /// It is longer than [`LINE_BYTES_MAX`]; this is how it begins.
    TooLong(&'a [u8]),
}

/// Reads lines one after another.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    text: Vec<u8>,
    offset: u64,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `reader`, of which the first byte is the one at `offset` of the whole.
    pub(super) fn new(reader: R, offset: u64) -> Lines<R> {
        Lines {
            reader,
            text: Vec::new(),
            offset,
        }
    }

    /// Where the next line begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line; none behind the last.
    ///
    /// # Errors
    /// As the reader's.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.text.clear();
        let begin = self.offset;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let content = &available[..end.unwrap_or(available.len())];
            // One byte more than may be tells that there is more.
            let room = LINE_BYTES_MAX + 1 - self.text.len();
            self.text
                .extend_from_slice(&content[..content.len().min(room)]);
            let taken = content.len() + usize::from(end.is_some());
            self.reader.consume(taken);
            self.offset += taken as u64;
            if end.is_some() {
                break;
            }
        }
        if self.offset == begin {
            return Ok(None);
        }
        Ok(Some(match self.text.len() <= LINE_BYTES_MAX {
            true => Line::Whole(&self.text),
            false => Line::TooLong(&self.text[..BEGINNING_BYTES]),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn lines_are_found_whatever_the_reader_gives_at_once() {
        let text = b"one\n\ntwo\r\nthree";
        for capacity in [1, 2, 3, 100] {
            let mut lines = Lines::new(BufReader::with_capacity(capacity, &text[..]), 7);
            for (line, offset) in [(&b"one"[..], 11), (b"", 12), (b"two\r", 17), (b"three", 22)] {
                let found = lines.next().expect("from memory");
                assert_eq!(found, Some(Line::Whole(line)), "{capacity}");
                assert_eq!(lines.offset(), offset);
            }
            assert_eq!(lines.next().expect("from memory"), None);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_with_its_beginning_kept() {
        for (len, too_long) in [(LINE_BYTES_MAX, false), (LINE_BYTES_MAX + 1, true)] {
            let text = [&vec![b'x'; len][..], b"\nnext"].concat();
            let mut lines = Lines::new(&text[..], 0);
            let found = lines.next().expect("from memory").expect("a line");
            let beginning = Line::TooLong(&text[..BEGINNING_BYTES]);
            assert_eq!(found == beginning, too_long);
            let next = lines.next().expect("from memory");
            assert_eq!(next, Some(Line::Whole(b"next")));
        }
    }
}
