//! The renewal of one lock alone: tries again until the lock is extended or lost.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{AbortHandle, abortable};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::schedule::Due;
use super::{Kept, Renewals, spread};
use crate::error::{ExtendError, LossReason};
use crate::inner::Core;
use crate::sync::lock;

/// Begins to renew a lock, if it is still kept alive.
pub(super) fn begin(core: &Arc<Core>, due: Due<Kept>) {
    let id = due.id;
    let (renewal, abort) = abortable(renew(Arc::clone(core), due));
    if core.renewals.enter_alone(id, abort) {
        core.engine.spawn(renewal.map(drop));
    }
}

impl Renewals {
    /// Records what ends the renewal of a lock. Returns `false` if the lock is not kept alive any more.
    fn enter_alone(&self, id: u64, abort: AbortHandle) -> bool {
        let mut list = lock(&self.list);
        let is_kept = list.schedule.get(id).is_some();
        if is_kept {
            list.alone.insert(id, abort);
        }
        is_kept
    }
}

async fn renew(core: Arc<Core>, due: Due<Kept>) {
    match due.item.extend().await {
        Ok(()) => core.renewals.renewed(&due),
        Err(reason) => core.renewals.lost(&due, reason),
    }
}

impl Kept {
    /// Extends the lock. Tries again after an error, while the lock is valid.
    async fn extend(&self) -> Result<(), LossReason> {
        loop {
            match self.extend_once().await {
                Ok(()) => return Ok(()),
                Err(ExtendError::Lost { reason, .. }) => return Err(reason),
                Err(error) => {
                    tracing::debug!(%error, "not renewed, trying again");
                    sleep(spread(self.pause(), self.claim.random())).await;
                }
            }
        }
    }

    async fn extend_once(&self) -> Result<(), ExtendError> {
        let extended = self.claim.extend_by(self.ttl).await?;
        // Confirmed at once, since no caller waits for this extension.
        self.claim.confirm(&extended)
    }
}

/// Has the key of a lock set again on the masters that lack it.
pub(super) fn heal(core: &Arc<Core>, id: u64) {
    core.renewals.enter_missing(id);
    // Without a permit, the jobs that have one heal this lock, too.
    if let Ok(permit) = Arc::clone(&core.renewals.healers).try_acquire_owned() {
        core.engine.spawn(heal_all(Arc::clone(core), permit));
    }
}

/// Extends the locks whose keys are missing, one after the other, until there are none left.
async fn heal_all(core: Arc<Core>, _permit: OwnedSemaphorePermit) {
    while let Some(kept) = core.renewals.next_missing() {
        // An error needs no answer: the lock was renewed just now, and a loss is found when it is due again.
        let _ = kept.extend_once().await;
    }
}

impl Renewals {
    /// Records that a master lacks the key of a lock, if the lock is still kept alive.
    fn enter_missing(&self, id: u64) {
        let mut list = lock(&self.list);
        if list.schedule.get(id).is_some() {
            list.missing.insert(id);
        }
    }

    /// Takes a lock whose key a master lacks.
    fn next_missing(&self) -> Option<Kept> {
        let mut list = lock(&self.list);
        let id = list.missing.pop_first()?;
        list.schedule.get(id).cloned()
    }
}
