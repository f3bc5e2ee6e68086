//! The command line of the test cluster. All of it lives in the library, where tests use it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::cli::main()
}
