//! What is known of each pod, and what it leads to: ports to ask for, rules to have, a result to
//! write.

mod forgery;
mod publish;
mod result;
pub(crate) mod state;

pub(crate) use forgery::suppressed_note;
pub use state::PodFacts;
pub(crate) use state::{PodState, Progress, Refusal, Want};
