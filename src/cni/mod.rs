//! podwire as CNI plugin: what a container runtime calls with `CNI_COMMAND` set and a network configuration on standard
//! input (specification 1.1.0, <https://www.cni.dev/docs/spec/>, and results since 0.3.0).
//!
//! ```text
//!   environment, stdin ──▶ Call ──▶ daemon, by its socket ──▶ result or error object on stdout
//! ```
//!
//! The plugin understands and checks; the daemon has the addresses and does the wiring. Nothing is executed, and nothing
//! of the input is used as a path but the network namespace and the daemon's directory.

mod act;
mod call;
mod check;
mod config;
mod conflist;
mod environment;
mod failure;
mod result;
mod values;
mod version;

pub mod install;

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub use call::Call;
pub use conflist::{calls_podwire, is_read};
pub use environment::Variables;
pub use failure::Failure;
pub use version::Version;

use config::MAX_CONFIG;
use failure::Code;

/// How long the runtime may take to hand over the configuration.
const READING: Duration = Duration::from_secs(10);

/// Whether this process was started as a plugin.
pub fn is_called() -> bool {
    env::var_os("CNI_COMMAND").is_some() && env::args_os().len() <= 1
}

/// Serves the call that this process was started for: 0 when done, else 1 and an error object.
pub fn main() -> ExitCode {
    let (version, outcome) = match read_config() {
        Ok(config) => {
            let call = Call::parse(&Variables::of_process(), &config);
            (Version::announced(&config), call.and_then(Call::carry_out))
        }
        Err(failure) => (None, Err(failure)),
    };
    let text = match &outcome {
        Ok(text) => text.clone(),
        Err(failure) => failure.to_json(version.unwrap_or(Version::LATEST)).unwrap_or_default(),
    };
    if !text.is_empty() && writeln!(io::stdout(), "{text}").is_err() {
        return ExitCode::FAILURE;
    }
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            // For people; nobody may be there to read it.
            let _ = writeln!(io::stderr(), "podwire: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// All of standard input, or one byte more than may be there.
fn read_config() -> Result<Vec<u8>, Failure> {
    let read = || {
        let mut config = Vec::new();
        let limit = u64::try_from(MAX_CONFIG).unwrap_or(u64::MAX).saturating_add(1);
        io::stdin().lock().take(limit).read_to_end(&mut config).map(|_| config)
    };
    let failure = |why: String| {
        Err(Failure::new(
            Code::InputOutput,
            format!("cannot read the network configuration from standard input: {why}"),
        ))
    };
    match within(READING, read) {
        Some(Ok(config)) => Ok(config),
        Some(Err(error)) => failure(error.to_string()),
        None => failure(format!("its end has not come for {} s", READING.as_secs())),
    }
}

/// What `work` gives, unless it takes longer than `limit`; then it goes on, and nobody hears of it.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().spawn(move || tell.send(work())).ok()?;
    told.recv_timeout(limit).ok()
}
