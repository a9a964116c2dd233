//! What can befall one request.

use redis::Value as Reply;

/// What befalls one request; see [`Master::inject`](super::Master::inject).
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
    /// It is lost on its way: not executed, and its sender is told that the connection broke.
    LoseRequest,
    /// It is executed, and its sender is told that the connection broke.
    LoseAnswer,
    /// It is not executed, and answered with this error: a code, a space, a text.
    Error(String),
    /// It is not executed, and answered with this.
    Answer(Reply),
}
