//! Questions about the node's addresses: `podwire ipam`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Owner, Range};

/// What a client asks about addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    List,
    /// Give an address that is held or in quarantine free.
    Release {
        address: IpAddr,
    },
    /// Compare what is remembered with what is there.
    Check,
    /// Hold addresses that containers have from another plugin.
    Import {
        /// The other plugin's network.
        network: String,
        entries: Vec<Entry>,
    },
}

/// An address that a container has from another plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub address: IpAddr,
    pub container: String,
    /// Old plugins did not note it.
    pub ifname: Option<String>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Addresses(Addresses),
    /// What the address was.
    Released(State),
    Audit(Audit),
    Imported(Imported),
}

/// `podwire ipam list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub ranges: Vec<Range>,
    /// All that are not free, in order.
    pub addresses: Vec<Assignment>,
}

/// Why an address is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A pod has it.
    Given,
    /// A container has it from another plugin.
    Held,
    /// A pod had it a short time ago.
    Quarantined,
    /// The configuration excludes it.
    Excluded,
    /// The kernel has it for a pod that is not remembered.
    Unknown,
}

/// An address that is not free, or a run of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub address: IpAddr,
    /// The end of a run of excluded addresses.
    pub last: Option<IpAddr>,
    pub state: State,
    /// The pod's name, or the device of one that is not remembered.
    pub pod: Option<String>,
    pub owner: Option<Owner>,
    /// For how long it has been so.
    pub age_secs: Option<u64>,
    /// How soon it leaves quarantine.
    pub free_in_secs: Option<u64>,
}

/// `podwire ipam check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// How many pods were looked at.
    pub pods: usize,
    pub findings: Vec<Finding>,
}

/// One thing that is not as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// Names the object, and the way out where the daemon does not take it by itself.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The file is not what the daemon remembers.
    Store,
    /// Two have the same address.
    Duplicate,
    /// A pod's address is outside of the node's ranges.
    Outside,
    /// A pod's wiring or its namespace is not as attach left it.
    Wiring,
    /// A device of a pod that is not remembered.
    UnknownDevice,
    /// A route or a neighbour for an address that no pod has.
    Leak,
}

/// `podwire ipam import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Held from now on.
    pub held: Vec<IpAddr>,
    /// Held already.
    pub known: Vec<IpAddr>,
    pub skipped: Vec<Skipped>,
}

/// What is not imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The address, or the file.
    pub what: String,
    pub why: String,
}
