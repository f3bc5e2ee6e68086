//! `enforcer`: parse, dispatch, exit code. Everything else is in the library.

use clap::Parser;
use portmapping_enforcer::args::{Cli, Command};
use portmapping_enforcer::commands;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    portmapping_runtime::log::init(&cli.log);
    match cli.command {
        Command::Keep(args) => portmapping_keeper::run(args).map_err(Into::into),
        Command::Run(args) => commands::run(*args),
        Command::Uninstall(args) => commands::uninstall(&args),
        Command::Health(args) => commands::health(&args),
    }
}
