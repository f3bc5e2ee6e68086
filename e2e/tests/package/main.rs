//! What a user installs, as rendered text: no cluster, no root.

#![allow(
    clippy::panic_in_result_fn,
    reason = "a test that fails may panic or return its error"
)]

mod render;

mod agree;
mod agree_values;
mod name_namespaces;
mod set_variables;
mod test_job;
