//! What is known of one peer from its probes.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::echo::Echo;
use super::witness::What;
use crate::control::api::ProbeState;
use crate::wire::Mac;

/// A peer is silent when it has let so many requests in a row go unanswered.
pub const SILENCE: u32 = 3;

/// How many of the last requests the loss is told of.
const WINDOW: u32 = 32;

/// A healthy way's MTU is tried with every so many-th request, in which much cannot go wrong unnoticed.
const FULL_EVERY: u64 = 6;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A small packet through the overlay.
    Small,
    /// One as large as the overlay's MTU.
    Full,
    /// A small packet to the node itself, outside of the overlay.
    Underlay,
}

/// The requests of one kind.
#[derive(Debug, Default)]
pub struct Line {
    waiting: Option<Request>,
    /// Since the last answer.
    pub lost_in_a_row: u32,
    pub answered_at: Option<Instant>,
    /// Why the last one could not be sent.
    pub refused: Option<String>,
}

/// A request that may still be answered.
#[derive(Clone, Copy, Debug)]
struct Request {
    echo: Echo,
    sent: SystemTime,
}

/// What was last seen of the peer's tunnel at the uplink, and when.
#[derive(Debug, Default)]
pub struct Seen {
    /// As it should be.
    pub well: Option<Instant>,
    pub vni: Option<(Instant, u32)>,
    pub to_mac: Option<(Instant, Mac)>,
    pub from_mac: Option<(Instant, Mac)>,
    pub from_address: Option<(Instant, IpAddr)>,
    /// An answer to a request that waits.
    pub answer: Option<Instant>,
}

/// One peer.
#[derive(Debug, Default)]
pub struct Record {
    pub small: Line,
    pub full: Line,
    pub underlay: Line,
    pub seen: Seen,
    pub answered: u64,
    pub lost: u64,
    /// The last requests from the newest bit on, 1 for lost, and how many there are.
    window: u32,
    window_len: u32,
    pub rtt: Option<Duration>,
    pub smoothed_rtt: Option<Duration>,
    turns: u64,
}

impl Record {
    pub fn state(&self) -> ProbeState {
        match (self.small.lost_in_a_row, self.small.answered_at) {
            (SILENCE.., _) => ProbeState::Silent,
            (_, Some(_)) => ProbeState::Answers,
            (_, None) => ProbeState::Unknown,
        }
    }

    /// How many of the last requests there were, and how many of them were lost.
    pub fn recent(&self) -> (u32, u32) {
        (self.window_len, self.window.count_ones())
    }

    /// Begins the peer's turn: what is not answered by now is lost.
    pub fn settle(&mut self) {
        if self.small.settle() {
            self.lost += 1;
            self.push(true);
        }
        self.full.settle();
        self.underlay.settle();
        self.turns += 1;
    }

    /// What to ask in this turn. The node itself and the MTU are asked for only where there is a reason.
    pub fn wanted(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::Small];
        let is_well = self.small.lost_in_a_row == 0 && self.small.answered_at.is_some();
        if is_well && (self.full.lost_in_a_row > 0 || self.turns % FULL_EVERY == 2) {
            kinds.push(Kind::Full);
        }
        if self.small.lost_in_a_row > 0 {
            kinds.push(Kind::Underlay);
        }
        kinds
    }

    /// Notes a request that was sent, or why it was not.
    pub fn asked(&mut self, kind: Kind, echo: Echo, sent: SystemTime, refused: Option<String>) {
        let line = self.line(kind);
        line.refused = refused;
        line.waiting = Some(Request { echo, sent });
    }

    /// Takes a reply that came by `kind`'s way, if it answers what was asked: from the node itself or from the overlay.
    pub fn answer(&mut self, is_underlay: bool, echo: Echo, at: Option<SystemTime>, now: Instant) {
        let kinds: &[Kind] = if is_underlay { &[Kind::Underlay] } else { &[Kind::Small, Kind::Full] };
        let Some(&kind) = kinds.iter().find(|kind| self.line(**kind).waits_for(echo)) else { return };
        let was_silent = self.state() == ProbeState::Silent;
        let line = self.line(kind);
        let sent = line.waiting.take().map(|request| request.sent);
        (line.lost_in_a_row, line.answered_at) = (0, Some(now));
        if kind != Kind::Small {
            return;
        }
        self.answered += 1;
        if was_silent {
            // It was told of; the loss from now on is another matter.
            (self.window, self.window_len) = (0, 0);
        }
        self.push(false);
        // None if the clock was set meanwhile.
        let rtt = at.zip(sent).and_then(|(at, sent)| at.duration_since(sent).ok());
        if let Some(rtt) = rtt {
            self.rtt = Some(rtt);
            self.smoothed_rtt = Some(self.smoothed_rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        }
    }

    /// Notes what was seen of the peer's tunnel, which should have `mac` and `address`.
    pub fn see(&mut self, what: What, mac: Mac, address: IpAddr, now: Instant) {
        match what {
            What::Vni(vni) => self.seen.vni = Some((now, vni)),
            What::ToMac(mac) => self.seen.to_mac = Some((now, mac)),
            What::FromNode { mac: from, .. } if from != mac => self.seen.from_mac = Some((now, from)),
            // Of its other family nothing is known.
            What::FromNode { address: from, .. } if from.is_ipv6() != address.is_ipv6() => {}
            What::FromNode { address: from, .. } if from != address => self.seen.from_address = Some((now, from)),
            What::FromNode { reply, .. } => {
                self.seen.well = Some(now);
                if reply.is_some_and(|echo| self.small.waits_for(echo)) {
                    self.seen.answer = Some(now);
                }
            }
        }
    }

    fn line(&mut self, kind: Kind) -> &mut Line {
        match kind {
            Kind::Small => &mut self.small,
            Kind::Full => &mut self.full,
            Kind::Underlay => &mut self.underlay,
        }
    }

    fn push(&mut self, lost: bool) {
        self.window = self.window << 1 | u32::from(lost);
        self.window_len = (self.window_len + 1).min(WINDOW);
    }
}

impl Line {
    fn waits_for(&self, echo: Echo) -> bool {
        self.waiting.is_some_and(|request| request.echo == echo)
    }

    /// Gives up what waits; true if something did.
    fn settle(&mut self) -> bool {
        let lost = self.waiting.take().is_some();
        self.lost_in_a_row += u32::from(lost);
        lost
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const SECOND: Duration = Duration::from_secs(1);

    pub fn address() -> IpAddr {
        "10.244.2.0".parse().unwrap()
    }

    fn echo(sequence: u16) -> Echo {
        Echo { id: 1, sequence, token: 1000 + u64::from(sequence) }
    }

    /// A turn in which what is asked for is answered if `answers` says so.
    pub fn turn(record: &mut Record, now: Instant, answers: impl Fn(Kind) -> bool) -> Vec<Kind> {
        record.settle();
        let kinds = record.wanted();
        let sent = SystemTime::now();
        for (sequence, &kind) in (0..).zip(&kinds) {
            record.asked(kind, echo(sequence), sent, None);
            if answers(kind) {
                record.answer(kind == Kind::Underlay, echo(sequence), Some(sent + SECOND), now);
            }
        }
        kinds
    }

    #[test]
    fn only_what_was_asked_is_answered_and_once() {
        let (mut record, now, sent) = (Record::default(), Instant::now(), SystemTime::now());
        record.settle();
        record.asked(Kind::Small, echo(1), sent, None);
        for forged in [Echo { sequence: 2, ..echo(1) }, Echo { token: 7, ..echo(1) }, Echo { id: 2, ..echo(1) }] {
            record.answer(false, forged, Some(sent), now);
        }
        record.answer(true, echo(1), Some(sent), now);
        assert_eq!((record.state(), record.answered), (ProbeState::Unknown, 0));
        for _ in 0..2 {
            record.answer(false, echo(1), Some(sent + SECOND), now);
        }
        assert_eq!((record.state(), record.answered, record.rtt), (ProbeState::Answers, 1, Some(SECOND)));
        record.settle();
        record.asked(Kind::Small, echo(2), sent, None);
        record.answer(false, echo(1), Some(sent), now);
        record.settle();
        assert_eq!((record.answered, record.lost, record.recent()), (1, 1, (2, 1)), "too late is lost");
    }

    #[test]
    fn round_trips_are_smoothed_and_a_clock_that_went_back_is_no_measure() {
        let (mut record, now, sent) = (Record::default(), Instant::now(), SystemTime::now());
        for (sequence, rtt) in [(1, 8), (2, 16)] {
            record.asked(Kind::Small, echo(sequence), sent, None);
            record.answer(false, echo(sequence), Some(sent + rtt * SECOND), now);
        }
        record.asked(Kind::Small, echo(3), sent, None);
        record.answer(false, echo(3), Some(sent - SECOND), now);
        assert_eq!((record.rtt, record.smoothed_rtt, record.answered), (Some(16 * SECOND), Some(9 * SECOND), 3));
    }

    #[test]
    fn a_peer_falls_silent_after_some_losses_and_its_loss_begins_anew_when_it_is_back() {
        let (mut record, now) = (Record::default(), Instant::now());
        turn(&mut record, now, |_| true);
        for lost in 0..=SILENCE {
            assert_eq!(record.state() == ProbeState::Silent, lost > SILENCE, "after {lost}");
            turn(&mut record, now, |_| false);
        }
        record.settle();
        assert_eq!(record.state(), ProbeState::Silent);
        turn(&mut record, now, |_| true);
        assert_eq!((record.state(), record.recent()), (ProbeState::Answers, (1, 0)));
        assert_eq!(record.lost, u64::from(SILENCE) + 1);
    }

    #[test]
    fn the_mtu_is_tried_now_and_then_and_the_node_itself_when_the_tunnel_fails() {
        let (mut record, now) = (Record::default(), Instant::now());
        let kinds: Vec<_> = (0..12).map(|_| turn(&mut record, now, |_| true)).collect();
        let full = kinds.iter().filter(|kinds| kinds.contains(&Kind::Full)).count();
        assert_eq!((full, &kinds[1][..]), (2, &[Kind::Small, Kind::Full][..]));
        assert!(!kinds.iter().any(|kinds| kinds.contains(&Kind::Underlay)));
        let kinds: Vec<_> = (0..9).map(|_| turn(&mut record, now, |kind| kind == Kind::Small)).collect();
        assert_eq!(kinds[8], [Kind::Small, Kind::Full], "until it is answered");
        turn(&mut record, now, |_| false);
        assert_eq!(turn(&mut record, now, |_| false), [Kind::Small, Kind::Underlay]);
    }

    #[test]
    fn what_is_seen_of_a_tunnel_is_compared_with_what_is_known() {
        let (mut record, now) = (Record::default(), Instant::now());
        let reply = Some(echo(1));
        let from = |mac, address: &str| What::FromNode { mac, address: address.parse().unwrap(), reply };
        record.asked(Kind::Small, echo(2), SystemTime::now(), None);
        for what in [
            What::Vni(2),
            What::ToMac(Mac([4; 6])),
            from(Mac([6; 6]), "10.244.2.0"),
            from(MAC, "10.244.1.0"),
            from(MAC, "fd00::"),
        ] {
            assert!(record.seen.well.is_none());
            record.see(what, MAC, address(), now);
        }
        record.see(from(MAC, "10.244.2.0"), MAC, address(), now);
        let seen = &record.seen;
        assert_eq!((seen.vni, seen.to_mac), (Some((now, 2)), Some((now, Mac([4; 6])))));
        assert_eq!(seen.from_mac, Some((now, Mac([6; 6]))));
        assert_eq!(seen.from_address.map(|(_, address)| address.to_string()), Some("10.244.1.0".to_owned()));
        assert_eq!((seen.well, seen.answer), (Some(now), None), "the answer is to another request");
    }
}
