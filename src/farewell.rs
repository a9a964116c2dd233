//! Releasing when the runtime is gone: on a thread that lives for a moment, with connections of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::master::{Identity, Master, Request};
use crate::masters::Masters;
use crate::trail::Step;

/// How long whoever drops a guard without a runtime is kept waiting: enough for a busy machine, and no noticeable
/// pause. A master that hangs costs it once, not for every guard.
pub(crate) const PATIENCE: Duration = Duration::from_millis(250);

/// The thread that does it. Guards dropped shortly after each other share it and its connections.
pub(crate) struct Farewell {
    masters: Masters,
    /// For each of them, whether it was waited for in vain the last time, and so is not waited for again.
    hopeless: Box<[AtomicBool]>,
    thread: Mutex<Option<UnboundedSender<Wish>>>,
}

/// A last compare-and-delete.
pub(crate) struct Wish {
    pub(crate) request: Request,
    /// The places of the masters that may hold the key.
    pub(crate) places: Vec<usize>,
    /// Those connections that are gone with their runtime: closed first, so that nothing under way there comes after.
    pub(crate) connections: Vec<Option<Identity>>,
    /// Is told whether all of the masters have answered.
    pub(crate) granted: Box<dyn FnOnce(bool) + Send>,
}

impl Farewell {
    pub(crate) fn new(masters: Masters) -> Arc<Self> {
        let hopeless = (0..masters.count()).map(|_| AtomicBool::new(false));
        Arc::new(Self {
            hopeless: hopeless.collect(),
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
        let sent = wishes.send(wish);
        if sent.is_err() {
            *thread = None;
        }
        // Not before: dropping a wish tells those who made it.
        drop(thread);
        drop(sent);
    }

    fn serve(self: Arc<Self>, mut wishes: UnboundedReceiver<Wish>) {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build();
        let Ok(runtime) = runtime else {
            *self.lock() = None;
            return;
        };
        // Not those of an earlier thread, whose runtime is ending.
        let masters = self.masters.siblings();
        runtime.block_on(async {
            let mut grants = JoinSet::new();
            while let Some(wish) = self.next(&mut wishes).await {
                grants.spawn(Arc::clone(&self).grant(masters.clone(), wish));
                while grants.try_join_next().is_some() {}
            }
            grants.join_all().await;
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
            for hopeless in &self.hopeless {
                hopeless.store(false, Ordering::Relaxed);
            }
        }
        wish
    }

    async fn grant(self: Arc<Self>, masters: Masters, wish: Wish) {
        let Wish {
            request,
            places,
            mut connections,
            granted,
        } = wish;
        let undone = places.into_iter().map(|place| {
            let (master, connection) = (masters.get(place), connections[place].take());
            self.undo(place, master, connection, request.clone())
        });
        granted(join_all(undone).await.into_iter().all(|undone| undone));
    }

    /// Asks one master to delete the key, once a connection has been closed there. Tells whether it has answered.
    async fn undo(
        self: &Arc<Self>,
        place: usize,
        master: Master,
        connection: Option<Identity>,
        request: Request,
    ) -> bool {
        let farewell = Arc::clone(self);
        // On its own, so that it goes on when nobody waits any more.
        let undone = tokio::spawn(async move {
            if let Some(connection) = connection {
                master.close(connection, PATIENCE).await;
            }
            let vote = master.ask(request, Step::Undo, PATIENCE).await;
            farewell.hopeless[place].store(false, Ordering::Relaxed);
            vote.is_settled()
        });
        let hopeless = &self.hopeless[place];
        let patience = if hopeless.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            PATIENCE
        };
        let Ok(undone) = timeout(patience, undone).await else {
            hopeless.store(true, Ordering::Relaxed);
            return false;
        };
        undone.unwrap_or(false)
    }

    fn lock(&self) -> MutexGuard<'_, Option<UnboundedSender<Wish>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
