//! The VXLAN device changes hands as it is: the other nodes send to the same MAC, by the same port.

use super::MigrateError;
use super::steps::{Steps, rename_device};
use crate::control::netlink::{Link, LinkSettings, MAIN_TABLE, Netlink, NetlinkError, RouteKind};
use crate::control::plan::ALIAS;

/// What tells whose a device and its routes are.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub alias: &'static str,
    /// Of routes.
    pub protocol: u8,
}

/// Gives the device a name and marks it and its routes. What is on it is put back: a kernel before 6.2 has it go down for
/// a new name, and takes from it all but the forwarding entries. While it changes hands it has podwire's alias, by which
/// it is found again when that is cut short.
pub fn hand_over(
    netlink: &mut Netlink,
    steps: &mut Steps,
    link: &Link,
    name: &str,
    from: Mark,
    to: Mark,
) -> Result<(), MigrateError> {
    let index = link.index;
    let addresses = netlink.addresses(Some(index))?;
    let mut neighbours = netlink.permanent_neighbours()?;
    neighbours.retain(|neighbour| neighbour.index == index);
    let mut routes = netlink.routes(MAIN_TABLE, from.protocol)?;
    routes.retain(|route| matches!(route.kind, RouteKind::Via { device, .. } if device == index));
    for route in &routes {
        let what = format!("hand over the route to {}", route.destination);
        steps.step(&what, || netlink.replace_route(route, to.protocol));
    }
    if link.name != name || link.alias != to.alias {
        let what = format!("hand over {} as {name}", link.name);
        steps.step(&what, || -> Result<(), NetlinkError> {
            let marked = |alias| LinkSettings { alias: Some(alias), ..LinkSettings::default() };
            netlink.set_link(index, marked(ALIAS))?;
            rename_device(netlink, link, name)?;
            addresses.iter().try_for_each(|address| netlink.add_address(address))?;
            neighbours.iter().try_for_each(|neighbour| netlink.set_neighbour(neighbour))?;
            routes.iter().try_for_each(|route| netlink.replace_route(route, to.protocol))?;
            netlink.set_link(index, marked(to.alias))
        });
    }
    Ok(())
}
