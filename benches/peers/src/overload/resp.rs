//! The wire protocol of Redis, as far as it takes to find where a command or a reply ends.

use std::io::{self, BufRead, Read};

/// Reads one value, be it a command or a reply, and appends its bytes.
pub(crate) fn read_value(from: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<()> {
    let begin = bytes.len();
    if from.read_until(b'\n', bytes)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = &bytes[begin..];
    let number = || {
        let digits = std::str::from_utf8(&line[1..]).ok()?.trim_end();
        digits.parse::<i64>().ok()
    };
    match line[0] {
        b'$' => {
            let length = number().ok_or(io::ErrorKind::InvalidData)?;
            // A negative length is nil.
            if let Ok(length) = u64::try_from(length) {
                from.take(length + 2).read_to_end(bytes)?;
            }
            Ok(())
        }
        b'*' => {
            let length = number().ok_or(io::ErrorKind::InvalidData)?;
            (0..length).try_for_each(|_| read_value(from, bytes))
        }
        _ => Ok(()),
    }
}

/// The name of a command, in capital letters.
pub(crate) fn name(command: &[u8]) -> String {
    let name = command.split(|byte| *byte == b'\n').nth(2);
    let name = String::from_utf8_lossy(name.unwrap_or_default());
    name.trim_end().to_ascii_uppercase()
}
