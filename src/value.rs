//! The random value that marks the owner of a lock.

use std::fmt;

use rand::Rng;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// 160 random bits in hexadecimal, as much as the Redlock page asks for. Never used for a second attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value([u8; 40]);

impl Value {
    pub(crate) fn random(rng: &mut impl Rng) -> Self {
        let mut bytes = [0; 20];
        rng.fill_bytes(&mut bytes);
        let mut text = [0; 40];
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        // Hexadecimal digits are ASCII, so there is always a string.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn values_are_forty_hexadecimal_digits_and_all_different() {
        let mut rng = rand::rng();
        let values: HashSet<String> = (0..10_000)
            .map(|_| Value::random(&mut rng).as_str().to_owned())
            .collect();
        assert_eq!(values.len(), 10_000);
        for value in values {
            assert_eq!(value.len(), 40);
            assert!(value.bytes().all(|digit| HEX.contains(&digit)));
        }
    }
}
