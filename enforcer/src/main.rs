//! `enforcer`: parses the arguments, runs the subcommand, sets the exit code.

use clap::Parser;
use portmapping_enforcer::args::{Cli, Command};
use portmapping_enforcer::{health, run, uninstall};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    portmapping_runtime::log::init(&cli.log);
    match cli.command {
        Command::Keep(args) => portmapping_keeper::run(args).map_err(Into::into),
        Command::Run(args) => run::run(*args),
        Command::Uninstall(args) => uninstall::uninstall(&args),
        Command::Health(args) => health::health(&args),
        Command::Status(args) => health::status(&args),
    }
}
