//! What can be sent, shared and spawned. Checked by the compiler.

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use tokio_redlock::{
    Address, Ballot, Ballots, BuildError, Delays, ExtendError, LockError, LockFailure, LockGuard,
    LockRequest, MasterError, Redlock, RedlockBuilder, ReleaseError, RetryPolicy, TtlError, Vote,
};

const TTL: Duration = Duration::from_secs(1);

fn is_sync<T: Send + Sync + Unpin + Debug + 'static>() {}

fn is_send<T: Send + Debug + 'static>() {}

fn is_error<T: Error + Clone + Send + Sync + 'static>() {}

fn can_be_awaited_anywhere<F: Future + Send>(future: F) -> F {
    future
}

fn can_be_spawned<F: Future<Output: Send> + Send + 'static>(future: F) -> F {
    future
}

#[test]
fn what_is_held_can_be_sent_and_shared() {
    is_sync::<Redlock>();
    is_sync::<RedlockBuilder>();
    is_sync::<LockGuard>();
    is_sync::<LockRequest>();
    is_sync::<RetryPolicy>();
    is_sync::<(Address, LockFailure, Ballot, Ballots, Vote)>();
    is_send::<Delays>();
}

#[test]
fn errors_fit_into_a_boxed_error() {
    is_error::<BuildError>();
    is_error::<TtlError>();
    is_error::<LockError>();
    is_error::<ExtendError>();
    is_error::<ReleaseError>();
    is_error::<MasterError>();
    is_error::<LockFailure>();
}

#[test]
fn futures_can_be_spawned() {
    async fn whole_life(dlm: Redlock) -> Result<(), Box<dyn Error + Send + Sync>> {
        let guard = can_be_spawned(dlm.lock("resource", TTL).into_future()).await?;
        can_be_awaited_anywhere(guard.extend(TTL)).await?;
        can_be_spawned(guard.release()).await?;
        can_be_awaited_anywhere(dlm.shutdown(TTL)).await;
        Ok(())
    }
    let dlm = Redlock::new(["redis://127.0.0.1:1"]).expect("a valid URL");
    drop(can_be_spawned(whole_life(dlm)));
}
