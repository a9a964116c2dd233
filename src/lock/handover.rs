//! A lock on its way to another process.

use std::sync::Arc;
use std::time::Duration;

use crate::error::AdoptError;
use crate::inner::Inner;
use crate::lock::claim::Claim;
use crate::lock::guard::LockGuard;
use crate::protocol::value::Value;

/// A lock on its way to another process, without a guard. Returned by [`LockGuard::leak`], and taken over by
/// [`Redlock::adopt`](crate::Redlock::adopt).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::Handover;
///
/// // The three parts, as received from the other process.
/// let handover = Handover::new("import", "9f0c1b", Duration::from_secs(8));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handover {
    /// The resource, without the key prefix.
    pub resource: Vec<u8>,
    /// The random value that marks the lock on the masters.
    pub value: String,
    /// How long the lock can be trusted. Subtract the time that the transfer to the other process takes.
    pub validity: Duration,
}

impl Handover {
    /// Makes a handover from what the other process has sent.
    pub fn new(resource: impl Into<Vec<u8>>, value: impl Into<String>, validity: Duration) -> Self {
        Self {
            resource: resource.into(),
            value: value.into(),
            validity,
        }
    }
    /// Takes the lock over, and extends it to `ttl`. The validity counts from this call, not from the first poll.
    pub(crate) fn adopt(
        self,
        inner: &Arc<Inner>,
        ttl: Duration,
    ) -> impl Future<Output = Result<LockGuard, AdoptError>> + Send + use<> {
        let Self {
            resource,
            value,
            validity,
        } = self;
        // Here and not in the future: the caller may poll the future much later.
        let valid_until = inner.clock.now().after(validity);
        let inner = Arc::clone(inner);
        async move {
            let (key, value) = (inner.key(&resource), Value::handed_over(value));
            // If the future is dropped from here on, this claim deletes nothing: the keys are still those of the other
            // process.
            let claim = Arc::new(Claim::of_another(&inner, &key, value, valid_until));
            let adopting = Arc::clone(&claim);
            let extended = claim.engine().run(async move { adopting.adopt(ttl).await });
            let extended = extended.await.map_err(|it| claim.not_extended(&it))??;
            // Nothing is awaited between this and the guard, so an adopted claim always has an owner who releases it.
            claim.confirm_adoption(&extended)?;
            Ok(LockGuard::new(claim))
        }
    }
}
