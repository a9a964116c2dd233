//! Free loopback ports.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// A free port, never the same one twice.
///
/// It lies below the ports that systems give to outgoing connections, so that one of those cannot take it while a
/// server is down.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    loop {
        let port = 15_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 17_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
