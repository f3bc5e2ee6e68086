//! `enforcer`: parses the arguments, runs the subcommand, sets the exit code.

use clap::Parser;
use portmapping_enforcer::args::{Cli, Command};
use portmapping_enforcer::{health, run, selftest, uninstall};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    portmapping_runtime::log::init(&cli.log);
    match cli.command {
        Command::Keep(args) => portmapping_keeper::run(args).map_err(Into::into),
        Command::Run(args) => run::run(*args),
        Command::Uninstall(args) => uninstall::uninstall(&args),
        Command::UninstallNodes(args) => uninstall::uninstall_nodes(&args),
        Command::Test(args) => selftest::test(&args),
        Command::TestAnswer(args) => selftest::answer(&args),
        Command::TestReach(args) => selftest::reach(&args),
        Command::Health(args) => health::health(&args),
        Command::Status(args) => health::status(&args),
    }
}
