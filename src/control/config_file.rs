//! The configuration file of a running daemon: what was last read of it, and what came of that.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};

/// The configuration file as it was last read.
#[derive(Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    /// Counts the configurations that were in force.
    pub generation: u64,
    /// Why the last contents were refused.
    pub last_error: Option<String>,
    text: String,
}

/// Why a configuration cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("cannot read {path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    #[error("pod {0} has the address {1}, which node.pod_cidrs would not hold any more; detach it first")]
    PodOutside(String, IpAddr),
}

impl ConfigFile {
    /// Reads and validates a file: the first generation.
    pub fn open(path: &Path) -> Result<(Self, Config), ReloadError> {
        let text = read(path)?;
        let config = Config::parse(&text)?;
        log_warnings(&config);
        Ok((Self { path: path.to_owned(), generation: 1, last_error: None, text }, config))
    }

    /// The configuration in the file as it is now; none when the file is as it was when its contents were accepted.
    pub fn read(&mut self) -> Result<Option<Config>, ReloadError> {
        let text = read(&self.path)?;
        if text == self.text && self.last_error.is_none() {
            return Ok(None);
        }
        self.text = text;
        Ok(Some(Config::parse(&self.text)?))
    }
}

/// Logs what is odd about a configuration.
pub fn log_warnings(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
}

fn read(path: &Path) -> Result<String, ReloadError> {
    fs::read_to_string(path).map_err(|error| ReloadError::Read(path.to_owned(), error))
}
