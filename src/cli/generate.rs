//! Man pages and shell completions, from the definition of the arguments.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::args::{Args, GenerateVerb};
use super::{CliError, output};

const NAME: &str = "podwire";

pub(super) fn run(verb: &GenerateVerb) -> Result<(), CliError> {
    match verb {
        GenerateVerb::Man { dir } => Ok(man_pages(dir)?),
        GenerateVerb::Completions { shell } => completions(*shell),
    }
}

/// Writes a page for the program and for each verb.
fn man_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Args::command(), dir)
}

fn completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), NAME, &mut script);
    Ok(output::write(format_args!("{}", String::from_utf8_lossy(&script)))?)
}
