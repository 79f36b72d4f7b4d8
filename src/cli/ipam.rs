use std::path::Path;

use super::args::{Args, IpamVerb};
use super::table::Table;
use super::verbs::{ask, unexpected};
use super::{CliError, output};
use crate::control::api::ipam::{Addresses, Answer, Ask, Assignment, Audit, Entry, Imported, State};
use crate::control::api::{Range, Reply, Request};
use crate::control::host_local::{self, HostLocal};

/// How many addresses are imported by one request, which then stays far below its limit.
const AT_ONCE: usize = 1000;

/// `podwire ipam`.
pub(super) fn run(args: &Args, verb: &IpamVerb) -> Result<(), CliError> {
    match verb {
        IpamVerb::List => match question(args, Ask::List)? {
            Answer::Addresses(list) => Ok(output::print(args.output, &list, list_text)?),
            other => Err(unexpected(Reply::Ipam(other))),
        },
        IpamVerb::Release { address } => match question(args, Ask::Release { address: *address })? {
            Answer::Released(was) => {
                let released = serde_json::json!({ "released": address, "was": was });
                Ok(output::print(args.output, &released, |_| format!("released {address}, which was {}\n", word(was)))?)
            }
            other => Err(unexpected(Reply::Ipam(other))),
        },
        IpamVerb::Check => check(args),
        IpamVerb::Import { network } => import(args, network),
    }
}

fn question(args: &Args, question: Ask) -> Result<Answer, CliError> {
    match ask(args, Request::Ipam(question))? {
        Reply::Ipam(answer) => Ok(answer),
        other => Err(unexpected(other)),
    }
}

fn check(args: &Args) -> Result<(), CliError> {
    let audit = match question(args, Ask::Check)? {
        Answer::Audit(audit) => audit,
        other => return Err(unexpected(Reply::Ipam(other))),
    };
    output::print(args.output, &audit, check_text)?;
    match audit.findings.len() {
        0 => Ok(()),
        findings => Err(CliError::Refused(format!("{findings} thing(s) are not as they are remembered"))),
    }
}

fn import(args: &Args, network: &Path) -> Result<(), CliError> {
    let dir = host_local::dir_of(network);
    let HostLocal { network, entries, skipped } = host_local::read(&dir).map_err(|error| {
        CliError::Refused(format!("cannot read {}: {error}; name host-local's directory", dir.display()))
    })?;
    let mut all = Imported { skipped, ..Imported::default() };
    for entries in entries.chunks(AT_ONCE).map(<[Entry]>::to_vec) {
        match question(args, Ask::Import { network: network.clone(), entries })? {
            Answer::Imported(imported) => {
                all.held.extend(imported.held);
                all.known.extend(imported.known);
                all.skipped.extend(imported.skipped);
            }
            other => return Err(unexpected(Reply::Ipam(other))),
        }
    }
    Ok(output::print(args.output, &all, import_text)?)
}

fn word(state: State) -> &'static str {
    match state {
        State::Given => "given",
        State::Held => "held",
        State::Quarantined => "quarantined",
        State::Excluded => "excluded",
        State::Unknown => "unknown",
    }
}

fn list_text(list: &Addresses) -> String {
    let mut ranges = Table::new(["RANGE", "CAPACITY", "USED", "QUARANTINED", "FREE"]);
    for Range { cidr, capacity, used, quarantined, free } in &list.ranges {
        ranges.row([
            cidr.to_string(),
            capacity.to_string(),
            used.to_string(),
            quarantined.to_string(),
            free.to_string(),
        ]);
    }
    let mut addresses = Table::new(["ADDRESS", "STATE", "POD", "OWNER", "AGE"]);
    for row in &list.addresses {
        addresses.row(cells(row));
    }
    if addresses.is_empty() { ranges.to_string() } else { format!("{ranges}\n{addresses}") }
}

fn cells(row: &Assignment) -> [String; 5] {
    let address = row.last.map_or_else(|| row.address.to_string(), |last| format!("{}-{last}", row.address));
    let state = match row.free_in_secs {
        Some(secs) => format!("{} for {secs} s", word(row.state)),
        None => word(row.state).to_owned(),
    };
    let owner = row.owner.as_ref().map(|owner| match &owner.workload {
        Some(workload) => format!("{} of {workload}", owner.network),
        None => owner.network.clone(),
    });
    let age = row.age_secs.map(|secs| format!("{secs} s"));
    [address, state, row.pod.clone().unwrap_or_default(), owner.unwrap_or_default(), age.unwrap_or_default()]
}

fn check_text(audit: &Audit) -> String {
    if audit.findings.is_empty() {
        return format!("{} pod(s): store, kernel and namespaces agree\n", audit.pods);
    }
    audit.findings.iter().flat_map(|finding| [finding.text.as_str(), "\n"]).collect()
}

fn import_text(imported: &Imported) -> String {
    let (held, known) = (imported.held.len(), imported.known.len());
    let skipped = imported.skipped.iter().map(|skipped| format!("skipped {}: {}\n", skipped.what, skipped.why));
    format!("{held} address(es) held from now on, {known} held already\n{}", skipped.collect::<String>())
}
