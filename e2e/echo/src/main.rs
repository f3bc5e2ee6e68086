//! The test server: answers every request, connection or datagram with its pod's name and a newline.
//!
//! It stands in for a user's application, so it has no dependency on anything of ours, listens on
//! both address families, and ends at once on SIGTERM although it is pid 1 of its container.

mod announce;
mod args;
mod serve;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use args::Args;

fn main() -> ExitCode {
    // The kernel ignores default actions for pid 1: without handlers a pod takes 30 s to end.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        let armed = Arc::new(AtomicBool::new(true));
        if let Err(error) = signal_hook::flag::register_conditional_shutdown(signal, 0, armed) {
            eprintln!("cannot handle signal {signal}: {error}");
            return ExitCode::FAILURE;
        }
    }
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("{message}\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    if let Err(error) = serve::start(&args) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    if let Some(address) = args.announce
        && let Err(error) = announce::announce(address, &serve::pod_name())
    {
        eprintln!("cannot announce to {address}: {error}");
        return ExitCode::FAILURE;
    }
    if let Some(lifetime) = args.exit_after {
        thread::sleep(lifetime);
        return ExitCode::SUCCESS;
    }
    loop {
        thread::park();
    }
}
