//! Settings under `/proc/sys/net`, of the network namespace of the calling thread
//! (`proc_sys_net` looks at the current task).
//!
//! A container's own are mounted read-only by its runtime; where the host's are mounted at `/host/proc/sys/net`, as
//! `deploy/` does, they are used.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const OWN: &str = "/proc/sys/net";
const OF_HOST: &str = "/host/proc/sys/net";

/// A setting that was changed, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Such as `ipv4/ip_forward`.
    pub key: String,
    pub from: String,
    pub to: String,
}

/// A setting that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("cannot read net/{key}: {source}")]
    Read { key: String, source: io::Error },
    #[error("cannot set net/{key} to {value}: {source}")]
    Write { key: String, value: String, source: io::Error },
}

/// The value of `net/KEY`; `None` when the kernel has no such setting.
pub fn read(key: &str) -> Result<Option<String>, SysctlError> {
    match std::fs::read_to_string(path(key)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError::Read { key: key.to_owned(), source }),
    }
}

/// Writes `net/KEY` unless it has the value already or the kernel has no such setting.
pub fn ensure(key: &str, value: &str) -> Result<Option<Changed>, SysctlError> {
    let error = |source| SysctlError::Write { key: key.to_owned(), value: value.to_owned(), source };
    match read(key)? {
        Some(from) if from != value => {
            std::fs::write(path(key), value).map_err(error)?;
            Ok(Some(Changed { key: key.to_owned(), from, to: value.to_owned() }))
        }
        _ => Ok(None),
    }
}

/// Whether the kernel drops IPv4 packets that arrive by a device through which no way leads back to their source
/// (RFC 3704). The higher of two settings counts, but loose (2) is higher than strict (1).
pub fn has_strict_rp_filter(device: &str) -> Result<bool, SysctlError> {
    let [all, own] = ["all", device].map(|name| read(&rp_filter(name)));
    Ok([all?, own?].iter().flatten().max().is_some_and(|value| value == "1"))
}

/// The key of a device's reverse path filter.
pub fn rp_filter(device: &str) -> String {
    format!("ipv4/conf/{device}/rp_filter")
}

fn path(key: &str) -> PathBuf {
    static ROOT: LazyLock<&Path> = LazyLock::new(|| {
        let of_host = Path::new(OF_HOST);
        if of_host.is_dir() { of_host } else { Path::new(OWN) }
    });
    ROOT.join(key)
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set net/{} from {} to {}", self.key, self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_what_is_right_and_what_does_not_exist() {
        let key = "ipv4/ip_forward";
        let now = read(key).unwrap().unwrap();
        assert_eq!(ensure(key, &now).unwrap(), None);
        assert_eq!(ensure("ipv4/conf/no-such-device/rp_filter", "0").unwrap(), None);
    }
}
