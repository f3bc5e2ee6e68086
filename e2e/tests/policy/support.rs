//! Words that all tables use.

pub(crate) mod caller;
mod fixtures;
pub(crate) mod objects;
pub(crate) mod rows;
pub(crate) mod world;

pub(crate) const ANNOTATION: &str = "tkestack.io/portmapping";
pub(crate) const MARK: &str = "tkestack.io/portmapping-request";
pub(crate) const PER_PORT: &str = "host-port.tkestack.io/9040-tcp";
/// What a refusal in a strict namespace tells the user to do.
pub(crate) const LABEL: &str = "tkestack.io/portmapping: allowed";
/// The example in every refusal: a value that works.
pub(crate) const WAY_OUT: &str = r#"Write "" or [{"containerPort":9040,"protocol":"TCP"}]"#;

/// What the policy says of our annotations and of our condition that come through pods/status.
pub(crate) const NOT_THROUGH_STATUS: &str = "through pods/status only the enforcer writes tkestack.io/portmapping (annotation and condition)";

/// A result, as only the enforcer writes it.
pub(crate) const RESULT: &str = r#"[{"hostPort":23817,"containerPort":9040,"protocol":"TCP","podName":"p","podIP":"10.244.1.7"}]"#;
/// A request with everything in it.
pub(crate) const REQUEST: &str = r#"[{"containerPort":9040}, {"containerPort":"web"}, {"containerPort":53,"protocol":"UDP","hostIP":"10.0.0.11"}]"#;
/// A request mark.
pub(crate) const MARKED: &str = r#"[{"containerPort":9040,"protocol":"TCP"}]"#;
