//! The key of a resource on the masters.

use std::sync::Arc;

/// A key: the prefix of the client, followed by the resource. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    bytes: Arc<[u8]>,
    /// The length of the prefix in bytes.
    prefix: usize,
}

impl Key {
    pub(crate) fn new(prefix: &[u8], resource: &[u8]) -> Self {
        Self {
            bytes: prefix.iter().chain(resource).copied().collect(),
            prefix: prefix.len(),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The resource as the caller named it, without the prefix.
    pub(crate) fn resource(&self) -> &[u8] {
        &self.bytes[self.prefix..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_prefix_and_the_resource() {
        let key = Key::new(b"lock:", b"a\xff");
        assert_eq!(key.as_bytes(), b"lock:a\xff");
        assert_eq!(key.resource(), b"a\xff");
        assert_eq!(Key::new(b"", b"").resource(), b"");
    }

    proptest::proptest! {
        /// A resource may be any bytes.
        #[test]
        fn resources_are_bytes(prefix: Vec<u8>, resource: Vec<u8>) {
            let key = Key::new(&prefix, &resource);
            assert_eq!(key.resource(), resource);
            assert_eq!(key.as_bytes().strip_prefix(&prefix[..]), Some(&resource[..]));
        }
    }
}
