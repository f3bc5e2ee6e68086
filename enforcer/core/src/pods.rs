//! What is known of each pod, and the result that follows from it.

mod result;
pub mod state;

pub(crate) use result::describe_port;
