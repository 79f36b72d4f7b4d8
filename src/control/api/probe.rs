//! What the probes of a peer have shown.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How a peer answers echo requests through the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Where they go: the address of the peer's VXLAN device.
    pub address: IpAddr,
    pub state: ProbeState,
    /// Round-trip time of the last answer, and smoothed as TCP's (RFC 6298).
    pub rtt_ns: Option<u64>,
    pub smoothed_rtt_ns: Option<u64>,
    /// Small requests whose answer came, or did not come in time, since the peer is known to the daemon.
    pub sent: u64,
    pub lost: u64,
    /// The last of them since the peer began to answer, and how many were lost.
    pub recent: u32,
    pub recent_lost: u32,
    /// How long ago the last answer was sent for.
    pub answered_ms_ago: Option<u64>,
    /// What is wrong, if anything.
    pub diagnosis: Option<Diagnosis>,
}

/// Whether a peer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeState {
    /// Too little was seen yet.
    Unknown,
    Answers,
    /// Several requests in a row were lost.
    Silent,
}

/// What keeps a peer from answering as it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    pub cause: Cause,
    /// The cause in words; "one of" where what was seen does not settle it.
    pub summary: String,
    /// What was seen.
    pub evidence: String,
    /// What to do.
    pub advice: String,
}

/// Causes that the probes can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Our own uplink is down.
    UplinkDown,
    /// The kernel refuses to send the requests.
    CannotSend,
    /// Neither the tunnel nor the node itself answers.
    NodeUnreachable,
    /// The node itself answers; nothing comes through the tunnel.
    TunnelSilent,
    /// The node itself answers; what is sent without the tunnel is not answered.
    DirectSilent,
    /// Tunnel packets of the peer arrive; ours come to nothing there.
    OneWay,
    /// The peer's answers reach our uplink, and are dropped on this node.
    DroppedHere,
    /// The peer sends with another VNI.
    OtherVni,
    /// The peer sends to a MAC that is not our VTEP's.
    WrongMacThere,
    /// The peer sends from another MAC than the one that we send to.
    WrongMacHere,
    /// The peer's VXLAN device has an address outside of the range that we know of.
    OtherRange,
    /// Small packets pass, and those as large as the overlay allows do not.
    MtuTooSmall,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::UplinkDown,
        Self::CannotSend,
        Self::NodeUnreachable,
        Self::TunnelSilent,
        Self::DirectSilent,
        Self::OneWay,
        Self::DroppedHere,
        Self::OtherVni,
        Self::WrongMacThere,
        Self::WrongMacHere,
        Self::OtherRange,
        Self::MtuTooSmall,
    ];

    /// The stable name that metrics use.
    pub fn label(self) -> &'static str {
        match self {
            Self::UplinkDown => "uplink_down",
            Self::CannotSend => "cannot_send",
            Self::NodeUnreachable => "node_unreachable",
            Self::TunnelSilent => "tunnel_silent",
            Self::DirectSilent => "direct_silent",
            Self::OneWay => "one_way",
            Self::DroppedHere => "dropped_here",
            Self::OtherVni => "other_vni",
            Self::WrongMacThere => "wrong_mac_there",
            Self::WrongMacHere => "wrong_mac_here",
            Self::OtherRange => "other_range",
            Self::MtuTooSmall => "mtu_too_small",
        }
    }
}
