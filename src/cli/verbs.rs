use std::path::{Path, absolute};

use serde::Serialize;

use super::args::{Args, Attach, ConfigVerb, FaultKind, Format, PodsVerb, Provoke, Verb};
use super::table::Table;
use super::{
    CliError, bench, cni, doctor, generate, ipam, migrate, output, peers, routes, stats, status, top, trace, uninstall,
};
use crate::config::{Config, ConfigError};
use crate::control::api::{self, Pod, Provocation, Reply, Request};
use crate::control::client::{self, ClientError};
use crate::control::daemon;
use crate::control::lifecycle::Starter;

/// Does what the arguments say.
pub(super) fn run(args: &Args, start: Starter) -> Result<(), CliError> {
    match &args.verb {
        Verb::Run(run) => Ok(daemon::run(&run.config, &args.runtime_dir, !run.no_seccomp, start)?),
        Verb::Config(ConfigVerb::Check { file }) => check(args.output, file),
        Verb::Pods(PodsVerb::Attach(pod)) => attach(args, pod),
        Verb::Pods(PodsVerb::Detach { name }) => detach(args, name),
        Verb::Pods(PodsVerb::List) => match ask(args, Request::PodsList)? {
            Reply::Pods(pods) => Ok(output::print(args.output, &pods, |pods| pods_text(pods))?),
            other => Err(unexpected(other)),
        },
        Verb::Ipam(verb) => ipam::run(args, verb),
        Verb::Status(verb) => status::run(args, verb.watch),
        Verb::Peers(verb) => peers::run(args, verb.watch),
        Verb::Stats(verb) => stats::run(args, verb.watch),
        Verb::Top(verb) => top::run(args, verb),
        Verb::Routes(verb) => routes::run(args, verb),
        Verb::Bench(verb) => bench::run(args, verb),
        Verb::Trace(verb) => trace::run(args, verb),
        Verb::Cni(verb) => cni::run(args, verb),
        Verb::Doctor(verb) => doctor::run(args, verb),
        Verb::Uninstall(verb) => uninstall::run(args, verb),
        Verb::Migrate(verb) => migrate::run(args, verb),
        Verb::Generate(verb) => generate::run(verb),
        Verb::Fault(fault) => provoke(args, fault),
    }
}

/// One question to the daemon that the arguments name.
pub(super) fn ask(args: &Args, request: Request) -> Result<Reply, CliError> {
    Ok(client::call(&args.runtime_dir, request)?)
}

/// A reply to another question than the one asked.
pub(super) fn unexpected(reply: Reply) -> CliError {
    ClientError::Unexpected(Box::new(reply)).into()
}

#[derive(Serialize)]
struct Verdict {
    valid: bool,
    problems: Vec<Fault>,
    warnings: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    key: String,
    value: String,
    reason: String,
    line: Option<usize>,
}

fn check(format: Format, file: &Path) -> Result<(), CliError> {
    let result = Config::load(file);
    let warnings = result.as_ref().map(|config| config.warnings.clone()).unwrap_or_default();
    if format == Format::Json {
        let problems = match &result {
            Ok(_) => Vec::new(),
            Err(ConfigError::Invalid(problems)) => problems.iter().cloned().map(Fault::from).collect(),
            Err(ConfigError::Read { source, .. }) => vec![Fault::whole_file(source.to_string())],
        };
        let warnings = warnings.iter().cloned().map(Fault::from).collect();
        output::print(format, &Verdict { valid: result.is_ok(), problems, warnings }, |_| String::new())?;
    }
    let config = result?;
    if format == Format::Text {
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
        let node = &config.node.name;
        let peers = match config.kubernetes {
            Some(_) => "ranges and peers from the Kubernetes API".to_owned(),
            None => format!("{} peer(s)", config.peers.len()),
        };
        output::write(format_args!("{} is valid: node {node}, {peers}\n", file.display()))?;
    }
    Ok(())
}

impl Fault {
    fn whole_file(reason: String) -> Self {
        Self { key: String::new(), value: String::new(), reason, line: None }
    }
}

impl From<crate::config::Problem> for Fault {
    fn from(problem: crate::config::Problem) -> Self {
        let crate::config::Problem { key, value, reason, line } = problem;
        Self { key, value, reason, line }
    }
}

fn attach(args: &Args, pod: &Attach) -> Result<(), CliError> {
    let request = Request::PodsAttach(api::Attach {
        name: pod.name.clone(),
        netns: absolute(&pod.netns)?,
        ifname: pod.ifname.clone(),
        addresses: pod.addresses.clone(),
        mac: pod.mac,
        owner: None,
    });
    match ask(args, request)? {
        Reply::Attached(pod) => Ok(output::print(args.output, &pod, |pod| {
            format!("attached {}: {} ({} here, {} there)\n", pod.name, addresses(pod), pod.host_ifname, pod.ifname)
        })?),
        other => Err(unexpected(other)),
    }
}

fn detach(args: &Args, name: &str) -> Result<(), CliError> {
    match ask(args, Request::PodsDetach { name: name.to_owned(), network: None })? {
        Reply::Detached { found: true } => {
            let text = |_: &_| format!("detached {name}\n");
            Ok(output::print(args.output, &serde_json::json!({ "detached": name }), text)?)
        }
        Reply::Detached { found: false } => {
            Err(CliError::Refused(format!("no pod is called `{name}`; see `podwire pods list`")))
        }
        other => Err(unexpected(other)),
    }
}

fn provoke(args: &Args, fault: &Provoke) -> Result<(), CliError> {
    let kind = match fault.kind {
        FaultKind::Hang => api::FaultKind::Hang,
        FaultKind::Starve => api::FaultKind::Starve,
        FaultKind::Overstep => api::FaultKind::Overstep,
    };
    match ask(args, Request::Fault(Provocation { worker: fault.worker, kind, ms: fault.ms }))? {
        Reply::Provoked => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn addresses(pod: &Pod) -> String {
    let list: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
    list.join(" ")
}

fn pods_text(pods: &[Pod]) -> String {
    let mut table = Table::new(["ID", "NAME", "WORKLOAD", "ADDRESSES", "DEVICE", "NETNS", "PATH", "WHY"]);
    for pod in pods {
        let netns = pod.netns.display().to_string();
        let (path, why) = (status::path(pod.path).to_owned(), pod.reason.clone().unwrap_or_default());
        let workload = pod.owner.as_ref().and_then(|owner| owner.workload.clone()).unwrap_or_else(|| "-".to_owned());
        let (id, name, device) = (pod.id.to_string(), pod.name.clone(), pod.host_ifname.clone());
        table.row([id, name, workload, addresses(pod), device, netns, path, why]);
    }
    let wrong = pods.iter().filter_map(|pod| Some(format!("problem: pod {}: {}\n", pod.name, pod.problem.as_ref()?)));
    table.to_string() + &wrong.collect::<String>()
}
