use std::io;
use std::ops::{BitOrAssign, RangeInclusive};
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::netfilter::{HEADER, NFTABLES};
use super::raw::{attribute, text};

/// Room for what the kernel packs into one datagram.
const BUFFER: usize = 64 << 10;

/// The most that one call of [`RulesetMonitor::drain`] reads: a flood must not keep its reader from its work.
const DRAUGHT: usize = 4096;

/// `NFNLGRP_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const GROUP: u32 = 7;

/// `NFT_MSG_NEWTABLE` to `NFT_MSG_DELCHAIN` (`nf_tables.h`), with `GET` between.
const TABLES_AND_CHAINS: RangeInclusive<u16> = 0..=5;
/// `NFT_MSG_NEWGEN`: the end of each transaction, of which nothing else is known.
const GENERATION: u16 = 15;

/// The attribute that names the table, which is the first of every kind of object but a generation
/// (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and so on).
const TABLE: u16 = 1;

/// The length of `struct nlmsghdr`.
const MESSAGE: usize = 16;

/// Notifications of nftables: a rule set has changed.
#[derive(Debug)]
pub struct RulesetMonitor {
    socket: Socket,
    buffer: Vec<u8>,
    table: &'static str,
}

/// What [`RulesetMonitor::drain`] found. Like the other notifications it says that something has changed, never
/// what: a look at it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RulesetNews {
    /// Tables or chains of any name.
    pub chains: bool,
    /// Anything in the watched table.
    pub table: bool,
}

impl RulesetNews {
    /// Anything may have changed.
    pub const ALL: Self = Self { chains: true, table: true };

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl BitOrAssign for RulesetNews {
    fn bitor_assign(&mut self, other: Self) {
        self.chains |= other.chains;
        self.table |= other.table;
    }
}

impl RulesetMonitor {
    /// Listens in the network namespace of the calling thread, and watches the tables called `table`. The
    /// descriptor becomes readable on news.
    pub fn open(table: &'static str) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), table })
    }

    /// Reads what is waiting; in a flood, or where some was lost, it is as if everything had changed. Never blocks.
    pub fn drain(&mut self) -> io::Result<RulesetNews> {
        let mut news = RulesetNews::default();
        for _ in 0..DRAUGHT {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => read(&self.buffer, self.table, &mut news),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(news),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => news = RulesetNews::ALL,
                Err(error) => return Err(error),
            }
        }
        Ok(RulesetNews::ALL)
    }
}

/// Adds what the messages of a datagram tell to `news`.
fn read(datagram: &[u8], table: &str, news: &mut RulesetNews) {
    let mut rest = datagram;
    while let [a, b, c, d, e, f, ..] = *rest {
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([e, f]);
        let Some(attributes) = rest.get(MESSAGE + HEADER..length) else { return };
        if kind >> 8 == NFTABLES && kind & 0xff != GENERATION {
            news.chains |= TABLES_AND_CHAINS.contains(&(kind & 0xff));
            news.table |= attribute(attributes, TABLE).is_some_and(|name| text(&name) == table);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

impl AsRawFd for RulesetMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What holds of any datagram: reading it ends, and what it tells is no less when more follows.
#[cfg(fuzzing)]
pub fn fuzz(datagram: &[u8]) {
    let (mut first, mut all) = (RulesetNews::default(), RulesetNews::default());
    let length = datagram.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
    read(datagram.get(..length).unwrap_or(datagram), "podwire", &mut first);
    read(datagram, "podwire", &mut all);
    assert!(all.chains >= first.chains && all.table >= first.table, "{first:?} and then {all:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A notification of `kind` about an object in `table`.
    fn message(kind: u16, table: &str) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        let length = u16::try_from(table.len() + 5).unwrap();
        body.extend([length.to_ne_bytes(), TABLE.to_ne_bytes()].concat());
        body.extend(table.bytes().chain([0]));
        body.resize(body.len().next_multiple_of(4), 0);
        let length = u32::try_from(MESSAGE + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend((NFTABLES << 8 | kind).to_ne_bytes());
        message.resize(MESSAGE, 0);
        message.extend(body);
        message
    }

    fn news(messages: &[Vec<u8>]) -> RulesetNews {
        let mut news = RulesetNews::default();
        read(&messages.concat(), "ours", &mut news);
        news
    }

    #[test]
    fn chains_of_any_table_are_news_and_rules_only_of_the_watched_one() {
        let (new_chain, new_rule, generation) = (3, 6, 15);
        let rows = [
            (vec![], false, false),
            (vec![message(new_chain, "theirs")], true, false),
            (vec![message(new_rule, "theirs")], false, false),
            (vec![message(new_rule, "theirs"), message(new_rule, "ours")], false, true),
            (vec![message(new_chain, "ours")], true, true),
            (vec![message(generation, "ours")], false, false),
            (vec![message(new_rule, "ours-too")], false, false),
        ];
        for (messages, chains, table) in rows {
            assert_eq!(news(&messages), RulesetNews { chains, table }, "{messages:?}");
        }
    }

    #[test]
    fn a_torn_notification_neither_panics_nor_loops() {
        let whole = [message(3, "ours"), message(6, "ours")].concat();
        for length in 0..whole.len() {
            read(&whole[..length], "ours", &mut RulesetNews::default());
        }
        read(&[0; 64], "ours", &mut RulesetNews::default());
    }
}
