//! The random value that marks the owner of a lock.

use std::fmt;
use std::sync::Arc;

use rand::Rng;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// How many digits each of three random numbers gives: 27 letters and digits carry 160 bits, as many as the 40
/// hexadecimal digits that the Redlock page recommends, in fewer bytes.
const PARTS: [u32; 3] = [10, 10, 7];

/// A random text of 160 bits. Each attempt has a value of its own. Or a value that another process handed over.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Value(Arc<str>);

impl Value {
    pub(crate) fn random(rng: &mut dyn Rng) -> Self {
        // All random bytes at once: the operating system is asked by a system call.
        let mut bytes = [[0; 8]; PARTS.len()];
        rng.fill_bytes(bytes.as_flattened_mut());
        let mut text = [0; 27];
        let mut digits = text.iter_mut();
        for (bytes, count) in bytes.into_iter().zip(PARTS) {
            // Scales the random number to the number of texts with so many digits. These are not all equally likely,
            // which costs less than a thousandth of a bit.
            let texts = u128::from(62_u64.pow(count));
            let mut number = (u128::from(u64::from_le_bytes(bytes)) * texts) >> 64;
            for digit in digits.by_ref().take(count as usize) {
                *digit = DIGITS[usize::try_from(number % 62).unwrap_or_default()];
                number /= 62;
            }
        }
        Self(
            text.iter()
                .map(|digit| char::from(*digit))
                .collect::<String>()
                .into(),
        )
    }

    pub(crate) fn handed_over(value: String) -> Self {
        Self(value.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
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
    fn values_are_27_letters_and_digits_and_all_different() {
        let mut rng = rand::rng();
        let values: HashSet<String> = (0..10_000)
            .map(|_| Value::random(&mut rng).as_str().to_owned())
            .collect();
        assert_eq!(values.len(), 10_000);
        for value in values {
            assert_eq!(value.len(), 27);
            assert!(value.bytes().all(|digit| DIGITS.contains(&digit)));
        }
    }

    #[test]
    fn a_value_is_shown_as_the_masters_have_it() {
        let value = Value::handed_over("af".into());
        assert_eq!(format!("{value:?}"), "af");
    }
}
