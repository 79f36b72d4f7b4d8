//! NETLINK_NETFILTER: the chains that translate addresses, and whether a tracked flow is translated now.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::channel::{Channel, NetlinkError};
use super::raw::RawMessage;

/// `NFNL_SUBSYS_CTNETLINK`, `NFNL_SUBSYS_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const CONNTRACK: u16 = 1;
pub(super) const NFTABLES: u16 = 10;

/// `IPCTNL_MSG_CT_GET` (`nfnetlink_conntrack.h`) and `NFT_MSG_GETCHAIN` (`nf_tables.h`).
const GET_FLOW: u16 = 1;
const GET_CHAIN: u16 = 4;

/// The length of `struct nfgenmsg`, which each message begins with: family, version, resource.
pub(super) const HEADER: usize = 4;

/// `CTA_STATUS`, `CTA_STATUS_MASK`; and the bits of a status that say that a flow is translated
/// (`IPS_SRC_NAT`, `IPS_DST_NAT`, `nf_conntrack_common.h`).
const STATUS: u16 = 3;
const STATUS_MASK: u16 = 26;
const TRANSLATED: [u32; 2] = [1 << 4, 1 << 5];

/// `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`, `NFTA_CHAIN_TYPE`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_TYPE: u16 = 7;

/// A chain that the kernel hands packets to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `NFPROTO_*`, such as `NFPROTO_INET` (1).
    pub family: u8,
    pub table: String,
    pub name: String,
    /// Such as `nat` or `filter`.
    pub kind: String,
}

/// A message of any part of netfilter.
type Message = RawMessage<HEADER>;

/// A socket for requests about the packet filter.
#[derive(Debug)]
pub struct Netfilter {
    channel: Channel,
}

impl Netfilter {
    /// Opens a socket in the network namespace of the calling thread; `None` where the kernel has no netfilter.
    pub fn open() -> Result<Option<Self>, NetlinkError> {
        match Channel::open(NETLINK_NETFILTER) {
            Err(NetlinkError::Socket(error)) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(None),
            opened => Ok(Some(Self { channel: opened? })),
        }
    }

    /// All base chains of nftables, of all families; those of iptables-nft are among them.
    pub fn base_chains(&mut self) -> Result<Vec<BaseChain>, NetlinkError> {
        match self.channel.dump(&message(NFTABLES, GET_CHAIN)) {
            Ok(chains) => Ok(chains.iter().filter_map(base_chain).collect()),
            Err(error) if has_no_subsystem(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Whether conntrack, which must be there, holds a flow that is translated. Takes a walk through its table, in the
    /// kernel.
    pub fn has_translated_flow(&mut self) -> Result<bool, NetlinkError> {
        for bit in TRANSLATED {
            // Kernels before 5.18 do not filter by it: each answer is looked at all the same.
            let bit = bit.to_be_bytes();
            let request = message(CONNTRACK, GET_FLOW).with(STATUS, bit).with(STATUS_MASK, bit);
            if self.channel.dump(&request)?.iter().any(is_translated) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the kernel says that it has no such part (`nfnetlink_rcv_msg`, `net/netfilter/nfnetlink.c`).
fn has_no_subsystem(error: &NetlinkError) -> bool {
    error.errno() == Some(libc::EINVAL)
}

fn base_chain(message: &Message) -> Option<BaseChain> {
    Some(BaseChain {
        kind: message.text(CHAIN_TYPE)?,
        family: *message.body.first()?,
        table: message.text(CHAIN_TABLE)?,
        name: message.text(CHAIN_NAME)?,
    })
}

fn is_translated(flow: &Message) -> bool {
    let status = flow.attribute(STATUS).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    status.is_some_and(|status| TRANSLATED.iter().any(|bit| status & bit != 0))
}

/// Of any family.
fn message(subsystem: u16, kind: u16) -> Message {
    Message::new(subsystem << 8 | kind, [0; HEADER])
}

/// What holds of any message: its parts are looked at, however it is torn.
#[cfg(fuzzing)]
pub fn fuzz(body: &[u8]) {
    let message = Message { kind: 0, body: body.to_vec() };
    if let Some(chain) = base_chain(&message) {
        let words = [chain.table, chain.name, chain.kind];
        assert!(words.iter().all(|word| !word.ends_with('\0')), "{words:?}");
    }
    let _of_a_flow = is_translated(&message);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with string attributes.
    fn chain(attributes: &[(u16, &str)]) -> Message {
        let mut body = vec![1, 0, 0, 0];
        for (kind, value) in attributes {
            let length = u16::try_from(value.len() + 5).unwrap();
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value.bytes().chain([0]));
            body.resize(body.len().next_multiple_of(4), 0);
        }
        Message { kind: NFTABLES << 8 | 3, body }
    }

    #[test]
    fn only_chains_with_a_type_are_base_chains() {
        let named = [(CHAIN_TABLE, "t"), (CHAIN_NAME, "post"), (CHAIN_TYPE, "nat")];
        let expected = BaseChain { family: 1, table: "t".into(), name: "post".into(), kind: "nat".into() };
        assert_eq!(base_chain(&chain(&named)), Some(expected));
        assert_eq!(base_chain(&chain(&named[..2])), None);
    }

    #[test]
    fn either_bit_of_the_status_makes_a_flow_translated() {
        let flow = |status: u32| message(CONNTRACK, 0).with(STATUS, status.to_be_bytes());
        for (status, translated) in [(0x19e, true), (0x1ae, true), (0x1be, true), (0x18e, false), (0, false)] {
            assert_eq!(is_translated(&flow(status)), translated, "{status:#x}");
        }
        assert!(!is_translated(&message(CONNTRACK, 0)), "without a status");
    }

    #[test]
    fn a_torn_attribute_ends_the_message() {
        let whole = chain(&[(CHAIN_TABLE, "t"), (CHAIN_NAME, "post")]).body;
        for length in 0..whole.len() {
            let torn = Message { kind: 0, body: whole[..length].to_vec() };
            assert!(torn.text(CHAIN_NAME).is_none_or(|name| name == "post"), "cut to {length}");
        }
    }
}
