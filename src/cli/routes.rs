use std::net::IpAddr;

use super::args::{Args, Routes};
use super::table::Table;
use super::verbs::{ask, unexpected};
use super::{CliError, output, status};
use crate::control::api::{self, Destination, Lookup, Reply, Request};

/// `podwire routes`: all of them, or what becomes of one address.
pub(super) fn run(args: &Args, verb: &Routes) -> Result<(), CliError> {
    if let Some(address) = verb.lookup {
        return lookup(args, address);
    }
    match ask(args, Request::Routes)? {
        Reply::Routes(routes) => Ok(output::print(args.output, &routes, |routes| routes_text(routes))?),
        other => Err(unexpected(other)),
    }
}

fn lookup(args: &Args, address: IpAddr) -> Result<(), CliError> {
    let found = match ask(args, Request::Lookup { address })? {
        Reply::Lookup(found) => found,
        other => return Err(unexpected(other)),
    };
    output::print(args.output, &found, lookup_text)?;
    match found.path {
        Some(_) => Ok(()),
        None => {
            Err(CliError::Refused(format!("{address} cannot be reached from the pods of this node: {}", found.why)))
        }
    }
}

fn lookup_text(found: &Lookup) -> String {
    let to = match found.to {
        Destination::Pod => "pod",
        Destination::Peer => "peer",
        Destination::Node => "this node",
        Destination::Unassigned => "nobody",
        Destination::Outside => "outside",
        Destination::NotUnicast => "not unicast",
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut table = Table::new(["ADDRESS", "PREFIX", "TO", "NEXT HOP", "DEVICE", "WAY", "PATH", "WHY"]);
    table.row([
        found.address.to_string(),
        or_dash(found.prefix.map(|prefix| prefix.to_string())),
        found.name.as_ref().map_or_else(|| to.to_owned(), |name| format!("{to} {name}")),
        or_dash(found.next_hop.clone()),
        or_dash(found.device.clone()),
        or_dash(found.way.map(|way| status::way(way).to_owned())),
        found.path.map_or("none", status::path).to_owned(),
        found.why.clone(),
    ]);
    table.to_string()
}

fn routes_text(routes: &[api::Route]) -> String {
    let mut table = Table::new(["PREFIX", "PEER", "UNDERLAY", "NEXT HOP", "WAY", "PATH", "WHY"]);
    for route in routes {
        table.row([
            route.prefix.to_string(),
            route.peer.clone(),
            route.underlay.to_string(),
            route.next_hop.clone().unwrap_or_else(|| "-".to_owned()),
            status::way(route.way).to_owned(),
            status::path(route.path).to_owned(),
            route.reason.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}
