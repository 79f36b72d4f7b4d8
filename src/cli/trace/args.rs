use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use ipnet::IpNet;

#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct Trace {
    #[command(subcommand)]
    pub verb: Option<TraceVerb>,
    #[command(flatten)]
    pub filter: TraceFilter,
    /// Only packets with one of these verdicts: `forwarded`, or a label of drops or verdicts in `podwire stats`.
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub verdict: Vec<String>,
    /// Only packets that are dropped, or only those that are dropped for this reason.
    #[arg(long, value_name = "REASON", num_args = 0..=1, default_missing_value = "")]
    pub drops: Option<String>,
    /// Only packets that go this way; without this, --verdict or --drops: the fast path, and what is dropped.
    #[arg(long, value_enum, conflicts_with = "drops")]
    pub path: Option<TracePath>,
    /// Write them as pcapng, `-` for standard output; each with its verdict as a comment.
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub write: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum TraceVerb {
    /// Show what is dropped and why, and at the end how much of each.
    #[command(
        after_help = "Example:\n  podwire trace drops --sample 100\n  podwire trace drops --pod web --seconds 10 --output json"
    )]
    Drops(TraceFilter),
}

/// Which packets, and how many of them.
#[derive(Clone, Debug, ClapArgs)]
pub(in crate::cli) struct TraceFilter {
    /// Only packets from or to this pod of the node.
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// Only packets from or to this node or its pods.
    #[arg(long, value_name = "NAME")]
    pub peer: Option<String>,
    /// Only packets from or to this address, the pod's or the tunnel's.
    #[arg(long, value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Only packets from or to an address of this range.
    #[arg(long, value_name = "PREFIX")]
    pub net: Option<IpNet>,
    /// Only packets from or to this TCP or UDP port.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    #[arg(long, value_enum)]
    pub protocol: Option<TraceProtocol>,
    #[arg(long, value_enum)]
    pub direction: Option<TraceDirection>,
    /// Take one of so many packets.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,
    /// Keep so many bytes of each packet.
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub snaplen: u16,
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so long.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum TracePath {
    /// By the workers, or straight to another pod of the node.
    Fast,
    /// Left to the kernel, each with the reason; what else the uplink carries only by --verdict.
    Kernel,
    /// Either, and what is dropped.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum TraceProtocol {
    Tcp,
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum TraceDirection {
    FromPod,
    ToPod,
}
