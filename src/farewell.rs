//! Releasing when the runtime is gone: on a thread that lives for a moment, with connections of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use crate::master::{Identity, Request};
use crate::masters::Masters;

/// How long whoever drops a guard without a runtime is kept waiting: enough for a busy machine, and no noticeable
/// pause. A master that hangs costs it once, not for every guard.
pub(crate) const PATIENCE: Duration = Duration::from_millis(250);

/// The thread that does it. Guards dropped shortly after each other share it and its connections.
pub(crate) struct Farewell {
    masters: Masters,
    thread: Mutex<Option<UnboundedSender<Wish>>>,
}

/// A last compare-and-delete.
pub(crate) struct Wish {
    pub(crate) request: Request,
    /// The masters that may hold the key.
    pub(crate) held: Vec<bool>,
    /// Those connections that are gone with their runtime: closed first, so that nothing under way there comes after.
    pub(crate) connections: Vec<Option<Identity>>,
    /// Is told whether all of the masters have answered.
    pub(crate) granted: Box<dyn FnOnce(bool) + Send>,
}

impl Farewell {
    pub(crate) fn new(masters: Masters) -> Arc<Self> {
        Arc::new(Self {
            masters,
            thread: Mutex::new(None),
        })
    }

    /// Sends a compare-and-delete to the masters that may hold the key. Does not wait.
    pub(crate) fn send(self: &Arc<Self>, wish: Wish) {
        let mut thread = self.lock();
        let wishes = thread.get_or_insert_with(|| {
            let (wishes, received) = unbounded_channel();
            let farewell = Arc::clone(self);
            // Where there is no thread to be had, nothing answers, and the key goes with its ttl.
            let _ = std::thread::Builder::new()
                .name("redlock-farewell".into())
                .spawn(move || farewell.serve(received));
            wishes
        });
        let _ = wishes.send(wish);
    }

    fn serve(&self, mut wishes: UnboundedReceiver<Wish>) {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build();
        let Ok(runtime) = runtime else {
            *self.lock() = None;
            return;
        };
        runtime.block_on(async {
            while let Some(wish) = self.next(&mut wishes).await {
                tokio::spawn(grant(self.masters.clone(), wish));
            }
        });
    }

    /// The next wish; `None` when there has been none for a while, and then none is lost.
    async fn next(&self, wishes: &mut UnboundedReceiver<Wish>) -> Option<Wish> {
        if let Ok(wish) = timeout(2 * PATIENCE, wishes.recv()).await {
            return wish;
        }
        let mut thread = self.lock();
        let wish = wishes.try_recv().ok();
        if wish.is_none() {
            *thread = None;
        }
        wish
    }

    fn lock(&self) -> MutexGuard<'_, Option<UnboundedSender<Wish>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn grant(masters: Masters, wish: Wish) {
    let Wish {
        request,
        held,
        connections,
        granted,
    } = wish;
    let undone = masters.undo_after(connections, &request, &held, PATIENCE);
    granted(timeout(PATIENCE, undone).await.unwrap_or(false));
}
