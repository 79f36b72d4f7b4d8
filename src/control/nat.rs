//! Whether the kernel may translate addresses in this network namespace, and so whether the steering programs must
//! look for flows that are translated.
//!
//! ```text
//!           a chain or table that translates                 IPVS has services
//!   none ─────────────────────────────────────▶ look-ups ─────────────────────────▶ everything to the kernel path
//!     ▲                                            │  ▲                                     │
//!     └── none left, and conntrack holds no ───────┘  └───────── no service, no connection ─┘
//!         translated flow
//! ```
//!
//! What cannot be told is taken for possible: that costs nanoseconds, the opposite costs connections. IPVS does not
//! mark the flows that it translates in conntrack (`net/netfilter/ipvs/ip_vs_nfct.c`), and by default does not tell
//! conntrack of them at all. Our own masquerading chain is not counted: it never concerns what the programs claim.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::netlink::{BaseChain, Netfilter, NetlinkError};
use super::ruleset::is_ours;
use super::sysctl;
use crate::steer::{NatCheck, knows_conntrack};

/// How often everything is looked at even when nothing was heard.
const RESYNC: Duration = Duration::from_secs(30);

/// How long until conntrack is asked again whether it holds a translated flow: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// What is known of the namespace.
#[derive(Debug)]
pub struct Nat {
    /// `None` until it could be opened: the kernel's part may be a module.
    netfilter: Option<Netfilter>,
    /// As last listed, or why they could not be.
    chains: Result<Vec<BaseChain>, String>,
    /// When they were listed without being asked to.
    listed_at: Option<Instant>,
    verdict: Verdict,
    knows_conntrack: bool,
    /// When to ask conntrack again, and how long that was put off.
    ask_at: Option<Instant>,
    wait: Duration,
}

/// What to do, and why unless nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    check: NatCheck,
    why: String,
}

/// What came of a [`Nat::look`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// [`Nat::check`] is another than before.
    pub has_new_check: bool,
    /// Conntrack was loaded: programs that were loaded before cannot ask it.
    pub has_conntrack: bool,
    /// The chains were listed because that was long ago.
    pub is_full: bool,
}

/// What of `/proc/net` speaks of translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Files {
    /// A legacy iptables `nat` table, which stays once it was used.
    legacy: bool,
    ipvs: bool,
}

impl Nat {
    /// For the network namespace of the calling thread, which must make all later calls too. Takes everything for
    /// possible until the first [`Nat::look`].
    pub fn new() -> Self {
        Self {
            netfilter: None,
            chains: Ok(Vec::new()),
            listed_at: None,
            verdict: Verdict::lookup("nothing was looked at yet"),
            knows_conntrack: knows_conntrack(),
            ask_at: None,
            wait: FIRST_WAIT,
        }
    }

    /// Looks again: always at what is cheap, and at the chains if they `have_changed` or were not looked at for long.
    pub fn look(&mut self, have_changed: bool, now: Instant) -> Looked {
        let before = self.check();
        let has_conntrack = !self.knows_conntrack && knows_conntrack();
        self.knows_conntrack |= has_conntrack;
        let is_full = self.listed_at.is_none_or(|at| now >= at + RESYNC);
        let had_ipvs = self.had_ipvs();
        if have_changed || is_full {
            self.chains = self.list();
        }
        if is_full {
            self.listed_at = Some(now);
        }
        let verdict = match decide(&self.chains, Files::read(had_ipvs)) {
            Some(verdict) => {
                self.ask_at = None;
                verdict
            }
            None => self.remaining(now),
        };
        if verdict != self.verdict {
            let Verdict { check, why } = &verdict;
            tracing::info!(?check, why, "translation of addresses");
            self.verdict = verdict;
        }
        Looked { has_new_check: self.check() != before, has_conntrack, is_full }
    }

    /// What the steering programs are to do.
    pub fn check(&self) -> NatCheck {
        match self.verdict.check {
            NatCheck::Lookup if !self.knows_conntrack => NatCheck::Kernel,
            check => check,
        }
    }

    /// Why they are to do it; empty when nothing is translated.
    pub fn why(&self) -> String {
        let Verdict { check, why } = &self.verdict;
        if *check == self.check() { why.clone() } else { format!("{why}, and this kernel's conntrack cannot be asked") }
    }

    /// Whether IPVS without services may still have connections: when it had services before, which nobody knows at
    /// first.
    fn had_ipvs(&self) -> bool {
        self.listed_at.is_none() || self.verdict.check == NatCheck::Kernel
    }

    fn list(&mut self) -> Result<Vec<BaseChain>, String> {
        self.ask(Vec::new(), Netfilter::base_chains)
    }

    /// The answer of netfilter, or `otherwise` where the kernel has none.
    fn ask<T>(
        &mut self,
        otherwise: T,
        question: impl FnOnce(&mut Netfilter) -> Result<T, NetlinkError>,
    ) -> Result<T, String> {
        if self.netfilter.is_none() {
            self.netfilter = Netfilter::open().map_err(|error| error.to_string())?;
        }
        self.netfilter.as_mut().map_or(Ok(otherwise), question).map_err(|error| error.to_string())
    }

    /// The verdict when nothing new can be translated: what was may still flow. Conntrack is asked ever more rarely.
    fn remaining(&mut self, now: Instant) -> Verdict {
        if self.verdict.check == NatCheck::None || self.ask_at.is_some_and(|at| now < at) {
            return self.verdict.clone();
        }
        let wait = if self.ask_at.is_some() { (self.wait * 2).min(LAST_WAIT) } else { FIRST_WAIT };
        (self.ask_at, self.wait) = (Some(now + wait), wait);
        match self.has_translated_flow() {
            Ok(false) => Verdict::NONE,
            Ok(true) => Verdict::lookup("conntrack still holds a translated flow"),
            Err(error) => {
                Verdict::lookup(format!("conntrack does not say whether it holds a translated flow: {error}"))
            }
        }
    }

    fn has_translated_flow(&mut self) -> Result<bool, String> {
        let count = sysctl::read("netfilter/nf_conntrack_count").map_err(|error| error.to_string())?;
        // Without conntrack there is none; asking would load it.
        if count.is_none_or(|count| count == "0") {
            return Ok(false);
        }
        self.ask(false, Netfilter::has_translated_flow)
    }
}

impl Verdict {
    const NONE: Self = Self { check: NatCheck::None, why: String::new() };

    fn lookup(why: impl Into<String>) -> Self {
        Self { check: NatCheck::Lookup, why: why.into() }
    }
}

/// The verdict by what can translate new flows; `None` if nothing can.
fn decide(chains: &Result<Vec<BaseChain>, String>, files: Files) -> Option<Verdict> {
    if files.ipvs {
        return Some(Verdict {
            check: NatCheck::Kernel,
            why: "IPVS translates without marking it in conntrack".into(),
        });
    }
    match chains {
        Err(error) => return Some(Verdict::lookup(format!("nftables cannot be listed: {error}"))),
        Ok(chains) => {
            if let Some(BaseChain { table, name, .. }) =
                chains.iter().find(|chain| chain.kind == "nat" && !is_ours(chain))
            {
                return Some(Verdict::lookup(format!("the nftables chain {name} of table {table} may")));
            }
        }
    }
    files.legacy.then(|| Verdict::lookup("the nat table of legacy iptables may"))
}

impl Files {
    /// Of the calling thread's namespace. IPVS counts for its connections too if it `had_ipvs` services.
    fn read(had_ipvs: bool) -> Self {
        Self::of(had_ipvs, |name| read(&format!("/proc/thread-self/net/{name}")))
    }

    /// By what `read` finds in the files of such names.
    fn of(had_ipvs: bool, read: impl Fn(&str) -> Option<String>) -> Self {
        let has_nat = |name| read(name).is_some_and(|text| text.lines().any(|table| table == "nat"));
        let has_entries = |name| read(name).is_some_and(|text| has_ipvs_entries(&text));
        Self {
            legacy: has_nat("ip_tables_names") || has_nat("ip6_tables_names"),
            ipvs: has_entries("ip_vs") || had_ipvs && has_entries("ip_vs_conn"),
        }
    }
}

/// The contents of a file; `None` when there is no such file. One that cannot be read is taken for one that speaks of
/// everything.
fn read(path: &str) -> Option<String> {
    match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path, %error, "cannot be read: it is taken to speak of translated flows");
            Some("nat\nTCP\n".to_owned())
        }
    }
}

/// Whether `/proc/net/ip_vs` lists a service, or `/proc/net/ip_vs_conn` a connection: below their headings each line
/// begins with a protocol or `FWM` (`net/netfilter/ipvs/ip_vs_ctl.c`, `ip_vs_conn.c`).
fn has_ipvs_entries(text: &str) -> bool {
    text.lines().any(|line| ["TCP", "UDP", "SCTP", "FWM"].iter().any(|word| line.starts_with(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IPVS whose last service has gone, and a connection has not.
    fn connection_without_service(name: &str) -> Option<String> {
        match name {
            "ip_vs" => {
                Some("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n".into())
            }
            "ip_vs_conn" => Some("Pro FromIP FPrt ToIP TPrt DestIP DPrt State\nTCP 0AF40102 9C40\n".into()),
            _ => None,
        }
    }

    #[test]
    fn connections_that_ipvs_had_before_the_daemon_started_count() {
        let mut nat = Nat::new();
        assert!(Files::of(nat.had_ipvs(), connection_without_service).ipvs);
        nat.look(true, Instant::now());
        nat.verdict = Verdict::NONE;
        assert!(!nat.had_ipvs(), "what was looked at needs no second look");
        nat.verdict.check = NatCheck::Kernel;
        assert!(nat.had_ipvs());
    }

    fn chain(family: u8, table: &str, kind: &str) -> BaseChain {
        BaseChain { family, table: table.into(), name: "c".into(), kind: kind.into() }
    }

    #[test]
    fn what_can_translate_decides_and_what_cannot_be_told_counts() {
        let none = Files::default();
        let (legacy, ipvs) = (Files { legacy: true, ..none }, Files { ipvs: true, ..none });
        let chains = |list: &[BaseChain]| Ok(list.to_vec());
        let harmless = [chain(2, "t", "filter"), chain(1, "podwire", "nat"), chain(2, "nat", "route")];
        let rows = [
            (chains(&[]), none, None),
            (chains(&harmless), none, None),
            (chains(&[chain(2, "nat", "nat")]), none, Some(NatCheck::Lookup)),
            (chains(&[chain(2, "podwire", "nat")]), none, Some(NatCheck::Lookup)),
            (chains(&harmless), legacy, Some(NatCheck::Lookup)),
            (Err("no answer".to_owned()), none, Some(NatCheck::Lookup)),
            (chains(&[chain(1, "t", "nat")]), ipvs, Some(NatCheck::Kernel)),
            (Err("no answer".to_owned()), ipvs, Some(NatCheck::Kernel)),
        ];
        for (chains, files, check) in rows {
            let verdict = decide(&chains, files);
            assert_eq!(verdict.as_ref().map(|verdict| verdict.check), check, "{chains:?}, {files:?}");
            assert!(verdict.is_none_or(|verdict| !verdict.why.is_empty()));
        }
    }

    #[test]
    fn ipvs_has_entries_only_below_its_headings() {
        let services = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                        -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        let connections = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n";
        for (heading, entry) in [
            (services, "TCP  0A600001:0050 rr \n"),
            (services, "FWM  00000001 wlc \n"),
            (connections, "UDP 0A0A0A0A 1234 0A600001 0035 0AF40102 0035 UDP         297\n"),
        ] {
            assert!(!has_ipvs_entries(heading));
            assert!(has_ipvs_entries(&format!("{heading}{entry}")), "{entry}");
        }
    }
}
