use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use super::bench::{ECHO_PORT, Target};
use super::trace;
use crate::cni::Version;
use crate::control::runtime::DEFAULT_DIR;
use crate::latency::MIN_BYTES;
use crate::wire::Mac;

/// A userspace AF_XDP pod data plane over a kernel path that is always complete.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = "Example:\n  podwire run --config /etc/podwire.toml &\n  podwire status")]
pub(super) struct Args {
    /// Where the daemon keeps its control socket and its state.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub runtime_dir: PathBuf,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// What to log on standard error: error, warn, info, debug, trace, or a filter such as
    /// `podwire=debug`; if not said, what RUST_LOG says, else info.
    #[arg(long, global = true, value_name = "LEVEL", env = "PODWIRE_LOG")]
    pub log: Option<LogFilter>,
    #[command(subcommand)]
    pub verb: Verb,
}

/// A filter that `tracing_subscriber` understands.
#[derive(Clone, Debug)]
pub(super) struct LogFilter(pub String);

impl LogFilter {
    /// That of RUST_LOG, which other programs have too, if it is one; else `info`.
    pub fn by_default() -> Self {
        let named = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
        named.and_then(|text| text.parse().ok()).unwrap_or_else(|| Self("info".to_owned()))
    }
}

impl FromStr for LogFilter {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        EnvFilter::try_new(text).map(|_| Self(text.to_owned()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Tables for people.
    Text,
    /// The same for programs.
    Json,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the daemon of this node until SIGTERM or Ctrl-C; SIGHUP reloads the configuration.
    #[command(after_help = "Example:\n  podwire run --config /etc/podwire.toml --runtime-dir /run/podwire")]
    Run(Run),
    /// Work with configuration files.
    #[command(subcommand, after_help = "Example:\n  podwire config check /etc/podwire.toml")]
    Config(ConfigVerb),
    /// Wire pods to this node by hand.
    #[command(
        subcommand,
        after_help = "Example:\n  podwire pods attach --netns /run/netns/web --ifname eth0 --name web\n  podwire pods list"
    )]
    Pods(PodsVerb),
    /// Show and repair who has which address.
    #[command(subcommand, after_help = "Example:\n  podwire ipam list\n  podwire ipam check --output json")]
    Ipam(IpamVerb),
    /// Show what the daemon does and what is wrong; fails when no daemon runs.
    #[command(
        after_help = "Example:\n  podwire status --output json | jq .dataplane.state\n  podwire status --watch 5"
    )]
    Status(Watch),
    /// Show counters: workers, drops by reason, pods, steering verdicts, kernel devices.
    #[command(after_help = "Example:\n  podwire stats\n  podwire stats --watch 5")]
    Stats(Watch),
    /// Show what the node does now: workers, uplink, pods, peers, and what is dropped and why.
    ///
    /// Rates are packets and bits a second since the reading before. The keys are told on the screen.
    #[command(after_help = "Example:\n  podwire top\n  podwire top --once --output json | jq .drops")]
    Top(Top),
    /// Show how each other node answers probes through the overlay, and what is wrong if one does not; fails then.
    ///
    /// Each peer is asked every few seconds (probe.interval_s in the configuration) by ICMP echo, from this node's VXLAN
    /// device to the peer's. STATE is SILENT after three losses in a row; RTT is smoothed; LOSS is of the last 32.
    #[command(
        after_help = "Example:\n  podwire peers\n  podwire peers --output json | jq '.[] | select(.probe.diagnosis)'"
    )]
    Peers(Watch),
    /// Show the prefixes of remote nodes, their next hops, and which path their packets take.
    #[command(after_help = "Example:\n  podwire routes\n  podwire routes --lookup 10.244.2.7")]
    Routes(Routes),
    /// Measure what pods get from this network.
    #[command(
        subcommand,
        after_help = "Example:\n  podwire bench reflect --from web &          # on the node of the pod web, 10.244.2.7\n  podwire bench latency --from db --to 10.244.2.7 --svg latency.svg"
    )]
    Bench(BenchVerb),
    /// Show packets as workers and steering programs see them: before and after encapsulation, with the verdict.
    ///
    /// It lasts until Ctrl-C or a bound, one at a time. The packets are not held up: what comes too fast is left out of
    /// the trace and counted. Without --write each packet is a line; times are UTC.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Example:\n  podwire trace --pod web --port 80\n  podwire trace --peer node-b --protocol icmp --count 20 --write ping.pcapng\n  podwire trace --host 10.244.2.7 --write - | tshark -r -\n  podwire trace --pod web --path kernel\n  podwire trace drops"
    )]
    Trace(trace::args::Trace),
    /// Have container runtimes call this binary as their CNI plugin.
    #[command(
        subcommand,
        after_help = "Example:\n  podwire cni install --chain portmap,bandwidth\n  podwire cni remove"
    )]
    Cni(CniVerb),
    /// Say what is wrong with this node, what it means and what to do; fails when something is an error.
    ///
    /// Run it in the network namespace of the node, with or without a daemon. Nothing is changed. The code is 0 when
    /// there is no error, and 1 when there is one; notes and warnings do not count.
    #[command(
        after_help = "Example:\n  podwire doctor --config /etc/podwire.toml\n  podwire doctor --fix >fix.sh   # to review, then to run"
    )]
    Doctor(Doctor),
    /// Remove podwire from this node; a daemon that runs is stopped first.
    ///
    /// Run it in the network namespace of the node. What starts the daemon again by itself, such as
    /// a service, must be stopped before. A second run finds nothing to do.
    #[command(
        after_help = "Example:\n  podwire uninstall --keep-kernel   # the pods go on by the kernel path\n  podwire uninstall --yes           # also when pods are attached, which lose their network"
    )]
    Uninstall(Uninstall),
    /// Move this node with its pods from Flannel to podwire, or back, without restarting them.
    #[command(
        subcommand,
        after_help = "Example:\n  podwire migrate from-flannel --config /etc/podwire.toml          # what it would do\n  podwire migrate from-flannel --config /etc/podwire.toml --yes"
    )]
    Migrate(MigrateVerb),
    /// Write man pages or a shell's completions.
    #[command(
        subcommand,
        after_help = "Example:\n  podwire generate man /usr/local/share/man/man1\n  podwire generate completions bash > /etc/bash_completion.d/podwire"
    )]
    Generate(GenerateVerb),
    /// Have a worker suffer, to test what comes of it; the daemon must have been started with PODWIRE_FAULTS=1.
    #[command(hide = true, after_help = "Example:\n  podwire fault hang --worker 0 --ms 500")]
    Fault(Provoke),
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum BenchVerb {
    /// Measure round trips from a pod of this node to an address that answers.
    ///
    /// Small datagrams leave the pod when they are due, whatever became of earlier ones, and each round trip counts from
    /// when its request was due: a stall shows up in full. SENT LATE is the part of it that this machine's own scheduler
    /// adds. Whoever runs it must be able to enter the pod's network namespace (root). It loads the network with `--rate`
    /// datagrams a second, each way. Ctrl-C ends it with what was measured so far.
    #[command(
        after_help = "Example:\n  podwire bench latency --from db --to 10.244.2.7\n  podwire bench latency --from db --to same=10.244.1.9 --to other=10.244.2.7 --rate 5000 --svg latency.svg"
    )]
    Latency(Latency),
    /// Answer the requests of `bench latency` inside a pod of this node, at each of its addresses, for a while.
    #[command(after_help = "Example:\n  podwire bench reflect --from web --seconds 600")]
    Reflect(Reflect),
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Latency {
    /// The pod of this node to send from: its name, or `namespace/pod` of Kubernetes.
    #[arg(long, value_name = "POD")]
    pub from: String,
    /// Where to: IP, IP:PORT or [IPv6]:PORT, of a `bench reflect` or any UDP echo service; port 7 if none is named. Can be
    /// repeated, one is measured after the other; LABEL= before it names it in the table and the picture.
    #[arg(long, value_name = "[LABEL=]IP[:PORT]", required = true)]
    pub to: Vec<Target>,
    /// Requests a second.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// For how long, to each target.
    #[arg(long, value_name = "SECS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Bytes of UDP payload, 24 to 9000.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = payload)]
    pub size: usize,
    /// Write the histogram as HdrHistogram's tools read it.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Draw latency by percentile.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Reflect {
    /// The pod of this node to answer in: its name, or `namespace/pod` of Kubernetes.
    #[arg(long, value_name = "POD")]
    pub from: String,
    /// The UDP port.
    #[arg(long, default_value_t = ECHO_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// For how long.
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub seconds: u64,
}

fn payload(text: &str) -> Result<usize, String> {
    let bytes = text.parse().map_err(|_| "it is not a number")?;
    (MIN_BYTES..=9000).contains(&bytes).then_some(bytes).ok_or_else(|| format!("it is not in {MIN_BYTES}..=9000"))
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Doctor {
    /// The configuration file; that of the daemon, else /etc/podwire.toml, if none is named.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where container runtimes look for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_dir: PathBuf,
    /// Show what is well, too.
    #[arg(long)]
    pub all: bool,
    /// Print a script that puts right what a command can, to be reviewed; nothing is run.
    #[arg(long, conflicts_with = "all")]
    pub fix: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum GenerateVerb {
    /// Write a man page for podwire and for each verb.
    #[command(after_help = "Example:\n  podwire generate man /usr/local/share/man/man1")]
    Man {
        /// Where to; made if it is missing.
        dir: PathBuf,
    },
    /// Print the completions of a shell.
    #[command(after_help = "Example:\n  podwire generate completions bash > /etc/bash_completion.d/podwire")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum MigrateVerb {
    /// Take over Flannel's tunnel and the pods behind its bridge.
    ///
    /// flanneld must not run. Connections of the pods go on, and the other nodes notice nothing. Pods that cannot be taken
    /// over are named with the reason; they stay behind the bridge until they restart. Interrupted, it can be run again.
    #[command(
        after_help = "Example:\n  podwire migrate from-flannel --config /etc/podwire.toml\n  podwire migrate from-flannel --config /etc/podwire.toml --yes && podwire run --config /etc/podwire.toml"
    )]
    FromFlannel(Migrate),
    /// Give tunnel and pods back to Flannel.
    ///
    /// A daemon of podwire is stopped; what would start it again, such as a service or a DaemonSet, must be kept away
    /// before. Connections of the pods go on, and the other nodes notice nothing. Start flanneld when it is done.
    #[command(
        after_help = "Example:\n  podwire migrate to-flannel --config /etc/podwire.toml\n  podwire migrate to-flannel --config /etc/podwire.toml --yes"
    )]
    ToFlannel(Migrate),
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Migrate {
    /// podwire's configuration of this node.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Do it; without this it is only told what would be done.
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Only tell what would be done, which is the default.
    #[arg(long)]
    pub dry_run: bool,
    /// Where CNI's plugins and runtimes keep their state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    pub cni_state: PathBuf,
    /// Where runtimes look for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Flannel's file about this node's range.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_env: PathBuf,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Uninstall {
    /// Remove the data plane only: the pods stay attached and go on by the kernel path, and
    /// `podwire run` can take over again.
    #[arg(long)]
    pub keep_kernel: bool,
    /// Remove everything even if pods are attached, which lose their network.
    #[arg(long, conflicts_with = "keep_kernel")]
    pub yes: bool,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Provoke {
    #[arg(value_enum)]
    pub kind: FaultKind,
    /// Which worker.
    #[arg(long, default_value_t = 0)]
    pub worker: u16,
    /// For how many milliseconds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FaultKind {
    /// It spins and looks at nothing.
    Hang,
    /// It runs without packet memory.
    Starve,
    /// It makes a system call that its filter forbids.
    Overstep,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Run {
    /// The configuration file; it is watched, and a valid change is applied at once.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Do not filter system calls: for a machine where a filter refuses what the daemon needs. Please report it.
    #[arg(long)]
    pub no_seccomp: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Check a file and name every fault in it.
    #[command(after_help = "Example:\n  podwire config check /etc/podwire.toml")]
    Check {
        /// The file to check.
        file: PathBuf,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum PodsVerb {
    /// Give a network namespace a device with addresses of this node.
    #[command(
        after_help = "Example:\n  ip netns add web\n  podwire pods attach --netns /run/netns/web --ifname eth0 --name web --ip 10.244.1.7"
    )]
    Attach(Attach),
    /// Take a pod's device away and free its addresses.
    #[command(after_help = "Example:\n  podwire pods detach --name web")]
    Detach {
        /// The name that it was attached with.
        #[arg(long)]
        name: String,
    },
    /// List the attached pods.
    #[command(after_help = "Example:\n  podwire pods list --output json")]
    List,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum IpamVerb {
    /// List the addresses that are not free, and how full each range is.
    #[command(after_help = "Example:\n  podwire ipam list\n  podwire ipam list --output json | jq .ranges")]
    List,
    /// Free an address that is held for another plugin's container, or in quarantine; that of a pod is freed by detaching
    /// the pod.
    #[command(after_help = "Example:\n  podwire ipam release 10.244.1.7")]
    Release { address: IpAddr },
    /// Compare what is remembered with the kernel and the pods' namespaces; fails when they do not agree.
    #[command(after_help = "Example:\n  podwire ipam check\n  podwire ipam check --output json | jq .findings")]
    Check,
    /// Hold the addresses that containers have from the CNI plugin host-local, until each container is removed; can be
    /// repeated.
    #[command(after_help = "Example:\n  podwire ipam import cbr0\n  podwire ipam import /var/lib/cni/networks/cbr0")]
    Import {
        /// The network's name, or host-local's directory of it.
        #[arg(value_name = "NETWORK|DIR")]
        network: PathBuf,
    },
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Attach {
    /// A file that names the network namespace.
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// The device to make in it.
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    pub ifname: String,
    /// What to call the pod; unique on this node.
    #[arg(long)]
    pub name: String,
    /// An address for the pod, can be repeated; without it, a free one of each family.
    #[arg(long = "ip", value_name = "ADDR")]
    pub addresses: Vec<IpAddr>,
    /// The MAC of the device in the pod; without it, one that follows from the address.
    #[arg(long)]
    pub mac: Option<Mac>,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum CniVerb {
    /// Put this binary and its network configuration where runtimes look for them.
    ///
    /// The configuration is written last, when the daemon can serve: from then on runtimes use it. What is in place
    /// already is left alone.
    #[command(
        after_help = "Example:\n  podwire cni install\n  podwire cni install --bin-dir /usr/lib/cni --chain portmap,bandwidth --wait 120"
    )]
    Install(CniInstall),
    /// Remove the network configuration, then the binary.
    #[command(after_help = "Example:\n  podwire cni remove --bin-dir /usr/lib/cni")]
    Remove(CniPlace),
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct CniInstall {
    #[command(flatten)]
    pub place: CniPlace,
    /// What the network is called.
    #[arg(long, default_value = "podwire")]
    pub name: String,
    /// Plugins that runtimes call after this one, `''` for none; they must be in the directory of plugins already. Host ports need
    /// `portmap`, and limits of bandwidth `bandwidth`.
    #[arg(long, value_name = "PLUGINS", value_delimiter = ',', default_value = "portmap,bandwidth")]
    pub chain: Vec<String>,
    /// The version of the CNI specification that runtimes are to speak.
    #[arg(long, value_name = "VERSION", default_value = "1.0.0", value_parser = cni_version)]
    pub cni_version: Version,
    /// How many seconds to wait until the daemon can serve.
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86400))]
    pub wait: u64,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct CniPlace {
    /// Where runtimes look for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Where runtimes look for network configurations; they use the first by name.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The name of the configuration's file.
    #[arg(long, value_name = "NAME", default_value = "10-podwire.conflist")]
    pub file: String,
}

fn cni_version(name: &str) -> Result<Version, String> {
    let spoken: Vec<_> = Version::ALL.iter().map(|version| version.as_str()).collect();
    Version::named(name).ok_or_else(|| format!("it is not one of {}", spoken.join(", ")))
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Top {
    /// Print the rates of one interval and end.
    #[arg(long)]
    pub once: bool,
    /// How many seconds lie between two readings.
    #[arg(long, value_name = "SECS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Routes {
    /// Say what becomes of packets that pods of this node send to an address; fails when they cannot be delivered.
    #[arg(long, value_name = "ADDR")]
    pub lookup: Option<IpAddr>,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Watch {
    /// Read again every SECS seconds until Ctrl-C; counters show their rates.
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub watch: Option<u64>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_every_verb_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().unwrap_or_else(|| panic!("{} has no example", command.get_name()));
            assert!(help.to_string().starts_with("Example:\n  "), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        Args::command().debug_assert();
        check(&Args::command());
    }

    #[test]
    fn watch_takes_an_optional_number_of_seconds() {
        let watch = |args: &[&str]| match Args::try_parse_from(args).map(|args| args.verb) {
            Ok(Verb::Stats(verb) | Verb::Status(verb)) => Some(verb.watch),
            _ => None,
        };
        assert_eq!(watch(&["podwire", "stats"]), Some(None));
        assert_eq!(watch(&["podwire", "stats", "--watch"]), Some(Some(1)));
        assert_eq!(watch(&["podwire", "stats", "--watch", "5"]), Some(Some(5)));
        assert_eq!(watch(&["podwire", "status", "--watch", "5"]), Some(Some(5)));
        assert_eq!(watch(&["podwire", "stats", "--watch", "0"]), None);
    }
}
