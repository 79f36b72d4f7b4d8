//! The command line: arguments in, text or JSON out. Everything else is asked of the daemon.

mod args;
mod bench;
mod cni;
mod doctor;
mod generate;
mod ipam;
#[cfg(test)]
mod manual;
mod migrate;
mod output;
mod peers;
mod rates;
mod routes;
mod stats;
mod status;
mod table;
mod top;
mod trace;
mod uninstall;
mod verbs;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use args::{Args, LogFilter};

use crate::control::lifecycle::Starter;

/// What a verb may end with besides success.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] crate::control::client::ClientError),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Daemon(#[from] crate::control::daemon::DaemonError),
    #[error(transparent)]
    Uninstall(#[from] crate::control::uninstall::UninstallError),
    #[error(transparent)]
    Migrate(#[from] crate::control::migrate::MigrateError),
    #[error(transparent)]
    Install(#[from] crate::cni::install::InstallError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}

/// Runs the command line of this process: 0 when done, 1 when it failed, 2 when misused.
/// `start` is how the daemon starts its data plane.
pub fn main(start: Starter) -> ExitCode {
    let args = Args::parse();
    log_to_stderr(args.log.clone().unwrap_or_else(LogFilter::by_default));
    match verbs::run(&args, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podwire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(LogFilter(filter): LogFilter) {
    let colours = io::stderr().is_terminal();
    // What it has to say the daemon says itself; a filter that names it goes before this one.
    let filter = EnvFilter::new(format!("kube_client=off,{filter}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.with_ansi(colours).with_target(false).init();
}
