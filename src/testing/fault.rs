//! The faults of a single request.

use redis::Value as Reply;

/// A fault of one request; see [`Master::inject`](super::Master::inject).
///
/// # Examples
///
/// ```
/// use tokio_redlock::testing::{Fault, Masters};
///
/// let masters = Masters::new(3);
/// masters[0].inject(Fault::LoseAnswer);
/// masters[0].inject(Fault::Error("LOADING Redis is loading the dataset in memory".into()));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The request is lost: the master does not execute it, and its sender sees a broken connection.
    LoseRequest,
    /// The answer is lost: the master executes the request, and its sender sees a broken connection.
    LoseAnswer,
    /// The master does not execute the request, and answers with this error: a code, a space, a text.
    Error(String),
    /// The master does not execute the request, and answers with this reply.
    Answer(Reply),
}
