//! The random value that marks the owner of a lock.

use std::fmt;
use std::sync::Arc;

use rand::Rng;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// 160 random bits in hexadecimal, the length that the Redlock page recommends. Each attempt has a value of its own. Or
/// a value that another process handed over.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Value(Arc<str>);

impl Value {
    pub(crate) fn random(rng: &mut dyn Rng) -> Self {
        let mut bytes = [0; 20];
        rng.fill_bytes(&mut bytes);
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Self(text.into())
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

    #[test]
    fn a_value_is_shown_as_the_masters_have_it() {
        let value = Value::handed_over("af".into());
        assert_eq!(format!("{value:?}"), "af");
    }
}
