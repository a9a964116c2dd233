//! Letting go of a lock: by a release, by a drop, and with the end of a runtime or of the process.

mod dropping;
mod ending;
mod faults;
mod leaked_keys;
mod release;
mod shutdown;
