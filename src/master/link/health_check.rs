//! The task that finds out whether a silent master hangs, and then has its connection replaced.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::{Instant, sleep, timeout};

use super::activity::DISCONNECT_UNUSED_AFTER;
use super::reconnector::Reconnector;
use super::state::Event;
use super::{Link, PING_AFTER};
use crate::engine::arrived_is_read;
use crate::master::connection::{Command, Connection, Order};
use crate::master::reply::Sign;
use crate::vote::MasterError;

/// The task that sends a ping over a connection without replies. There is at most one for each link.
pub(super) struct HealthCheck(Reconnector);

impl Drop for HealthCheck {
    fn drop(&mut self) {
        // Also where the runtime shuts down, or no later health check could start.
        self.0.link().activity.mark_checked();
    }
}

impl HealthCheck {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self(Reconnector::new(link, false))
    }

    pub(super) async fn run(self, connection: Connection) {
        let Self(reconnector) = &self;
        let link = reconnector.link();
        let begun = Instant::now();
        let ping = link.send(&connection, Order::plain(ping()));
        // Any reply will do, and an error too.
        if let Ok(reply) = timeout(link.ping_timeout(), ping).await {
            return link.received(connection.serial(), &reply);
        }
        // A stall of this process is no silence of the master.
        arrived_is_read().await;
        // The reply to the ping may have to wait for those to earlier requests. Each of them is a sign of life.
        if link.activity.since_last_reply() < begun.elapsed() {
            return;
        }
        if link.on(Event::PingTimedOut(connection.serial())) {
            // Before the next await: this task may be dropped there, and must not leave the state `Hung`.
            reconnector.set_owns_state(true);
            link.report(&MasterError::Hung(link.hung_after()));
            self.replace(connection).await;
        }
    }

    /// Opens another connection beside the hung one, unless the hung one comes back to life first.
    async fn replace(&self, hung: Connection) {
        let Self(reconnector) = self;
        let link = reconnector.link();
        let reconnects = link.connector.reconnects();
        let mut replacing = pin!(async {
            if reconnects {
                reconnector.connect_until_it_works().await;
            } else {
                self.wait_until_unused().await;
            }
        });
        let is_revived = tokio::select! {
            // Without this the branches would be polled in random order, and a simulation would not repeat itself.
            biased;
            is_revived = comes_back(&hung) => is_revived,
            () = &mut replacing => return,
        };
        if is_revived && link.on(Event::Revived(hung.serial())) {
            // The attempt that is being made is dropped when this returns.
            reconnector.set_owns_state(false);
            link.activity.mark_alive();
        } else if reconnects {
            // The hung connection broke, or a new one will close it.
            link.on(Event::HungGivenUp);
            replacing.await;
        }
        // An external connection that broke leaves the state `Idle`: the next request tries it again.
    }

    async fn wait_until_unused(&self) {
        while !self.0.is_unused() {
            sleep(DISCONNECT_UNUSED_AFTER / 10).await;
        }
    }
}

/// Waits for a sign of life. Returns `false` if the connection breaks instead.
async fn comes_back(hung: &Connection) -> bool {
    loop {
        let reply = hung.send_plain(ping()).await;
        match Sign::of(&reply) {
            Sign::Alive => return true,
            Sign::Broken => return false,
            // The external connection has answered in place of the master.
            Sign::Unknown => sleep(PING_AFTER).await,
        }
    }
}

fn ping() -> Arc<Command> {
    Command::plain(redis::cmd("PING"))
}
