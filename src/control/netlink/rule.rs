use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Nla as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{Netlink, NetlinkError, family};

/// `FRA_DSCP` to `FRA_DSCP_MASK` (`include/uapi/linux/fib_rules.h`).
const RESTRICTING: RangeInclusive<u16> = 25..=30;

/// A policy routing rule: what comes from `source` is looked up in `table`, and goes on with the next rule when there
/// is nothing for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Rules are asked in rising order: 0 is the table of local addresses, 32766 the main one.
    pub priority: u32,
    pub source: IpNet,
    pub table: u8,
}

impl Netlink {
    /// The rules of this kind, of both families, that carry `protocol` (`FRA_PROTOCOL`).
    pub fn rules(&mut self, protocol: u8) -> Result<Vec<Rule>, NetlinkError> {
        let mut rules = Vec::new();
        for is_ipv6 in [false, true] {
            let mut message = RuleMessage::default();
            message.header.family = family(is_ipv6);
            let objects = self.dump(&RouteNetlinkMessage::GetRule(message))?;
            rules.extend(objects.iter().filter_map(|object| read(object, protocol)));
        }
        Ok(rules)
    }

    /// Adds a rule; an error (`EEXIST`) when there is one like it, whoever made it.
    pub fn add_rule(&mut self, rule: &Rule, protocol: u8) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::NewRule(message(rule, protocol)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a rule.
    pub fn delete_rule(&mut self, rule: &Rule, protocol: u8) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::DelRule(message(rule, protocol)), 0)
    }
}

fn message(rule: &Rule, protocol: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.source.addr().is_ipv6());
    message.header.src_len = rule.source.prefix_len();
    message.header.table = rule.table;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.source.network()),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::from(protocol)),
    ];
    message
}

/// `None` for a rule that carries another protocol, or asks for more than a source.
fn read(object: &RouteNetlinkMessage, protocol: u8) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = object else { return None };
    let header = &message.header;
    let mut source = None::<IpAddr>;
    let mut priority = 0;
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(*address),
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Protocol(carried) => ours = u8::from(*carried) == protocol,
            other if restricts(other) => return None,
            _ => {}
        }
    }
    let plain = header.action == RuleAction::ToTable && header.dst_len == 0 && header.tos == 0;
    let source = IpNet::new(source?, header.src_len).ok()?;
    (ours && plain).then_some(Rule { priority, source, table: header.table })
}

/// Whether a rule with this attribute concerns fewer packets than its source says, or is more than a look-up. Newer
/// kernels write attributes of other kinds in every rule.
fn restricts(attribute: &RuleAttribute) -> bool {
    match attribute {
        // The kernel writes "none" in every rule.
        RuleAttribute::SuppressPrefixLen(length) => *length != u32::MAX,
        RuleAttribute::SuppressIfGroup(group) => *group != u32::MAX,
        RuleAttribute::Destination(_)
        | RuleAttribute::Iifname(_)
        | RuleAttribute::Oifname(_)
        | RuleAttribute::Goto(_)
        | RuleAttribute::FwMark(_)
        | RuleAttribute::TunId(_)
        | RuleAttribute::L3MDev(_)
        | RuleAttribute::UidRange(_)
        | RuleAttribute::IpProtocol(_)
        | RuleAttribute::SourcePortRange(_)
        | RuleAttribute::DestinationPortRange(_) => true,
        RuleAttribute::Other(attribute) => RESTRICTING.contains(&attribute.kind()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    #[test]
    fn what_a_newer_kernel_tells_of_every_rule_does_not_hide_ours_and_what_restricts_does() {
        let rule = Rule { priority: 240, source: "10.244.1.0/24".parse().unwrap(), table: 240 };
        let with = |attribute| {
            let mut message = message(&rule, 240);
            message.attributes.push(attribute);
            read(&RouteNetlinkMessage::NewRule(message), 240)
        };
        for harmless in
            [RuleAttribute::SuppressPrefixLen(u32::MAX), RuleAttribute::Other(DefaultNla::new(99, vec![0; 4]))]
        {
            assert_eq!(with(harmless), Some(rule));
        }
        let dscp = RuleAttribute::Other(DefaultNla::new(25, vec![8]));
        for restricting in [RuleAttribute::FwMark(1), RuleAttribute::SuppressPrefixLen(0), dscp] {
            assert_eq!(with(restricting.clone()), None, "{restricting:?}");
        }
    }
}
