//! The tasks that mend a link: one opens a connection until that works, the other finds out whether a silent master
//! hangs, and then does the same.

use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use redis::RedisError;
use tokio::time::{Instant, sleep, timeout};

use super::{Link, MIN_PAUSE, SILENCE, State};
use crate::master::connection::{Command, Connection, WhenCallerGone};
use crate::master::reply::{Sign, connect_error};
use crate::vote::MasterError;

/// At most this long, so that a master that comes back votes within half a second.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// A master that nobody has asked for this long is not connected to; the next request does that.
const UNWANTED: Duration = Duration::from_secs(10);

/// The task that brings a link up. Should its runtime be shut down first, the next request starts another one.
pub(super) struct Mender {
    link: Arc<Link>,
    /// Whether the link waits for this task and no other.
    in_charge: AtomicBool,
}

impl Drop for Mender {
    fn drop(&mut self) {
        // Never after the link is up: nothing is awaited between that and the end of the charge.
        if *self.in_charge.get_mut() {
            self.link.change(|_| true, State::Idle);
        }
    }
}

impl Mender {
    pub(super) fn new(link: &Arc<Link>, in_charge: bool) -> Self {
        Self {
            link: Arc::clone(link),
            in_charge: AtomicBool::new(in_charge),
        }
    }

    pub(super) async fn connect_until_it_works(&self) {
        let link = &self.link;
        let mut pause = MIN_PAUSE;
        loop {
            let started = Instant::now();
            // Tokio panics where it cannot start a thread that looks up a name.
            let opened = AssertUnwindSafe(link.open_somehow()).catch_unwind().await;
            let opened = opened.unwrap_or_else(|_| Err(connect_error(no_thread())));
            let Err(error) = opened else {
                self.in_charge.store(false, Ordering::Relaxed);
                return;
            };
            link.report(&error);
            // A connection that hangs is kept, since what undoes goes there.
            link.change(|state| !matches!(state, State::Hung(_)), State::Down(error));
            // An attempt that took long was pause enough.
            sleep(pause.saturating_sub(started.elapsed())).await;
            pause = (pause * 2).min(MAX_PAUSE);
            if self.is_unwanted() {
                return;
            }
        }
    }

    /// Opens another connection beside one that hangs, unless that one comes back to life first.
    async fn replace(&self, hung: Connection) {
        let link = &self.link;
        let reconnects = link.connector.reconnects();
        let mut another = pin!(async {
            if reconnects {
                self.connect_until_it_works().await;
            } else {
                self.wait_until_unwanted().await;
            }
        });
        let revived = tokio::select! {
            biased;
            revived = revives(&hung) => revived,
            () = &mut another => return,
        };
        let hangs = |state: &State| matches!(state, State::Hung(_));
        if revived && link.change(hangs, State::Up(hung)) {
            self.in_charge.store(false, Ordering::Relaxed);
            link.heard();
        } else if reconnects {
            link.change(hangs, State::connecting());
            another.await;
        }
    }

    async fn wait_until_unwanted(&self) {
        while !self.is_unwanted() {
            sleep(UNWANTED / 10).await;
        }
    }

    /// Nobody waits for this master, and nobody has asked for it lately, or can any more.
    fn is_unwanted(&self) -> bool {
        let link = &self.link;
        let unasked = link.since(&link.wanted) > UNWANTED || Arc::strong_count(link) == 1;
        unasked && !link.state.is_watched()
    }
}

/// The task that finds out whether a silent master hangs, and replaces the connection to one that does, unless
/// the old one comes back to life first.
pub(super) struct Prober(Mender);

impl Drop for Prober {
    fn drop(&mut self) {
        self.0.link.probing.store(false, Ordering::Relaxed);
    }
}

impl Prober {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self(Mender::new(link, false))
    }

    pub(super) async fn run(self, live: Connection) {
        let Self(mender) = &self;
        let link = &mender.link;
        let ping = link.exchange(live.clone(), ping(), WhenCallerGone::Skip);
        if timeout(link.doubt(), ping).await.is_ok() {
            return;
        }
        let current = |state: &State| matches!(state, State::Up(current) if current.serial() == live.serial());
        if link.change(current, State::Hung(live.clone())) {
            mender.in_charge.store(true, Ordering::Relaxed);
            link.report(&MasterError::Hung(link.silence()));
            mender.replace(live).await;
        }
    }
}

/// Waits for a sign of life; `false` if the connection breaks instead.
async fn revives(live: &Connection) -> bool {
    loop {
        match Sign::of(&live.send(ping(), WhenCallerGone::Skip).await) {
            Sign::Alive => return true,
            Sign::Broken => return false,
            Sign::Unknown => sleep(SILENCE).await,
        }
    }
}

fn no_thread() -> RedisError {
    io::Error::other("no thread can be started to look up its name").into()
}

fn ping() -> Arc<Command> {
    Command::plain(redis::cmd("PING"))
}
