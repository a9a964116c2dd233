//! A lock on its way to another process.

use std::sync::Arc;
use std::time::Duration;

use crate::error::AdoptError;
use crate::inner::Inner;
use crate::lock::claim::Claim;
use crate::lock::guard::LockGuard;
use crate::protocol::value::Value;

/// A lock on its way to another process, without a guard: what [`LockGuard::leak`] leaves and
/// [`Redlock::adopt`](crate::Redlock::adopt) takes.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::Handover;
///
/// // As received from the other process.
/// let handover = Handover::new("import", "9f0c1b", Duration::from_secs(8));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handover {
    /// What is locked, without the key prefix.
    pub resource: Vec<u8>,
    /// The random value that marks the lock on the masters.
    pub value: String,
    /// How long the lock can be trusted. Take off what the way to the other process takes.
    pub validity: Duration,
}

impl Handover {
    /// What was received from the other process.
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
        let valid_until = inner.clock.now().after(validity);
        let inner = Arc::clone(inner);
        async move {
            let (key, value) = (inner.key(&resource), Value::handed_over(value));
            let claim = Arc::new(Claim::of_another(&inner, &key, value, valid_until));
            let adopting = Arc::clone(&claim);
            let extended = claim.engine().run(async move { adopting.adopt(ttl).await });
            let extended = extended.await.map_err(|it| claim.not_extended(&it))??;
            claim.confirm_adoption(&extended)?;
            Ok(LockGuard::new(claim))
        }
    }
}
