//! Numbers that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kernel interface index, valid in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IfIndex(pub u32);

impl IfIndex {
    /// No interface.
    pub const NONE: Self = Self(0);
}

/// The two ends of the hub, a veth pair of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubEnds {
    /// Where pods' frames arrive for the workers, and workers send packets for pods.
    pub near: IfIndex,
    /// Where these arrive.
    pub far: IfIndex,
}

impl HubEnds {
    /// No hub.
    pub const NONE: Self = Self { near: IfIndex::NONE, far: IfIndex::NONE };
}

/// Whether a text can be a device's name to the kernel (`dev_valid_name` in `net/core/dev.c`), is no pattern (`%d`), and
/// needs no quoting.
pub fn is_device_name(text: &str) -> bool {
    let usable = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    (1..16).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(usable)
}

/// A receive/transmit queue of a device, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u32);

/// A worker, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u16);

/// A pod on this node: 1 to [`PodId::MAX`], because it travels as a VLAN id between the
/// steering program and the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub struct PodId(u16);

impl PodId {
    /// The largest id: 4095 is reserved by IEEE 802.1Q.
    pub const MAX: u16 = 4094;

    /// The id, or `None` when it is 0 or above [`PodId::MAX`].
    pub fn new(id: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&id).then_some(Self(id))
    }

    /// The id as a plain number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl From<PodId> for u16 {
    fn from(id: PodId) -> Self {
        id.0
    }
}

impl TryFrom<u16> for PodId {
    type Error = String;

    fn try_from(id: u16) -> Result<Self, Self::Error> {
        Self::new(id).ok_or_else(|| format!("pod id {id} is not between 1 and {}", Self::MAX))
    }
}

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_what_the_kernel_takes() {
        for good in ["eth0", "a", "abcdefghijklmno"] {
            assert!(is_device_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "eth%d", "abcdefghijklmnop"] {
            assert!(!is_device_name(bad), "{bad}");
        }
    }
}
