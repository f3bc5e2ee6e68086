//! What is known of each pod, and what follows from it: the ports to ask for, the rules that it
//! needs, the result to write.

mod contest;
mod facts;
mod forgery;
mod publish;
mod result;
pub(crate) mod state;
mod unmapped;

pub use facts::PodFacts;
pub(crate) use facts::Want;
pub(crate) use forgery::suppressed_note;
pub use publish::uninstalled;
pub(crate) use state::{PodState, Progress, Refusal};
