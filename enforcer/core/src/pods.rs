//! What is known of each pod, and what follows from it: the ports to ask for, the rules that it
//! needs, the result to write.

mod contest;
mod doubt;
mod facts;
mod forgery;
mod publish;
mod result;
pub(crate) mod state;
mod unmapped;
mod writes;

pub use facts::PodFacts;
pub(crate) use facts::Want;
pub(crate) use forgery::suppressed_note;
pub use publish::uninstalled;
pub(crate) use state::{PodState, Progress};
pub(crate) use unmapped::Refusal;
