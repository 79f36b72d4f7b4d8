use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use super::args::{Args, Format};
use super::table::Table;
use super::verbs::{ask, unexpected};
use super::{CliError, output, status};
use crate::control::api::{Diagnosis, Peer, Probe, ProbeState, Reply, Request};

/// `podwire peers`: once, and then it fails if something is wrong with a peer; or every `watch` seconds.
pub(super) fn run(args: &Args, watch: Option<u64>) -> Result<(), CliError> {
    let Some(secs) = watch else {
        let peers = read(args)?;
        output::print(args.output, &peers, |peers| text(peers))?;
        return match peers.iter().filter(|peer| diagnosis(peer).is_some()).count() {
            0 => Ok(()),
            ill => Err(CliError::Refused(format!("{ill} of {} peer(s) cannot be reached as it should", peers.len()))),
        };
    };
    loop {
        let peers = read(args)?;
        match args.output {
            Format::Json => output::write(serde_json::to_string(&peers).map_err(std::io::Error::from)? + "\n")?,
            Format::Text => output::write(format_args!("{}{}\n", output::clear(), text(&peers)))?,
        }
        sleep(Duration::from_secs(secs));
    }
}

fn read(args: &Args) -> Result<Vec<Peer>, CliError> {
    match ask(args, Request::Status)? {
        Reply::Status(status) => Ok(status.peers),
        other => Err(unexpected(other)),
    }
}

fn diagnosis(peer: &Peer) -> Option<&Diagnosis> {
    peer.probe.as_ref()?.diagnosis.as_ref()
}

/// The peers for people, and what is wrong with them.
fn text(peers: &[Peer]) -> String {
    let mut table = Table::new(["PEER", "UNDERLAY", "WAY", "PATH", "PROBED", "STATE", "RTT", "LOSS", "ANSWERED"]);
    for peer in peers {
        let path = status::path(peer.path).to_owned();
        let head = [peer.name.clone(), peer.underlay.to_string(), status::ways(&peer.ways), path];
        table.row(head.into_iter().chain(peer.probe.as_ref().map_or_else(unprobed, cells)));
    }
    let mut text = if table.is_empty() { "no peers\n".to_owned() } else { table.to_string() };
    for (peer, Diagnosis { summary, evidence, advice, .. }) in
        peers.iter().filter_map(|peer| Some((peer, diagnosis(peer)?)))
    {
        let _ = write!(text, "\n{}: {summary}\n  seen: {evidence}\n  do:   {advice}\n", peer.name);
    }
    text
}

/// The [`cells`] of a peer that is not probed.
pub(super) fn unprobed() -> [String; 5] {
    ["-", "not probed", "-", "-", "-"].map(str::to_owned)
}

/// Where a peer is probed, what it does, its round-trip time, its losses, and when it answered last.
pub(super) fn cells(probe: &Probe) -> [String; 5] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let answered = probe.answered_ms_ago.map(|ms| format!("{} s ago", ms / 1000));
    [
        probe.address.to_string(),
        state(probe).to_owned(),
        or_dash(probe.smoothed_rtt_ns.map(rtt)),
        format!("{} of {}", probe.recent_lost, probe.recent),
        or_dash(answered),
    ]
}

/// The word for what a peer does.
fn state(probe: &Probe) -> &'static str {
    match (probe.state, &probe.diagnosis) {
        (ProbeState::Silent, _) => "SILENT",
        (_, Some(_)) => "ILL",
        (ProbeState::Unknown, None) => "unknown yet",
        (ProbeState::Answers, None) => "answers",
    }
}

/// A time in milliseconds, of which a network has a few.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52 ns")]
fn rtt(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

/// How many peers answer, for a line of `podwire status`.
pub(super) fn summary(peers: &[Peer]) -> String {
    let probed: Vec<_> = peers.iter().filter_map(|peer| peer.probe.as_ref()).collect();
    let count = |wanted| probed.iter().filter(|probe| probe.state == wanted).count();
    let mut text = format!("{}, {} answer(s) probes", peers.len(), count(ProbeState::Answers));
    let ill = peers.iter().filter(|peer| diagnosis(peer).is_some()).count();
    if ill > 0 {
        let _ = write!(text, ", {ill} with a problem: see `podwire peers`");
    } else if probed.is_empty() {
        text = format!("{}, not probed", peers.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Cause, Path, Way};

    fn peer(probe: Option<Probe>) -> Peer {
        Peer {
            name: "node-b".into(),
            underlay: "192.168.1.3".parse().unwrap(),
            vtep_mac: String::new(),
            underlay6: None,
            vtep_mac6: None,
            ways: vec![Way::Vxlan],
            path: Path::Fast,
            reason: None,
            probe,
        }
    }

    fn probe(state: ProbeState) -> Probe {
        Probe {
            address: "10.244.2.0".parse().unwrap(),
            state,
            rtt_ns: None,
            smoothed_rtt_ns: Some(123_456),
            sent: 9,
            lost: 3,
            recent: 8,
            recent_lost: 2,
            answered_ms_ago: Some(4_500),
            diagnosis: None,
        }
    }

    #[test]
    fn a_peer_is_a_line_and_what_is_wrong_with_it_follows() {
        let well = peer(Some(probe(ProbeState::Answers)));
        let shown = text(std::slice::from_ref(&well));
        assert!(shown.ends_with("answers  0.123 ms  2 of 8  4 s ago\n"), "{shown}");
        assert_eq!(summary(std::slice::from_ref(&well)), "1, 1 answer(s) probes");
        let diagnosis = Diagnosis {
            cause: Cause::OneWay,
            summary: "it is so".into(),
            evidence: "this".into(),
            advice: "that".into(),
        };
        let ill = peer(Some(Probe { diagnosis: Some(diagnosis), ..probe(ProbeState::Silent) }));
        let shown = text(&[well, ill.clone()]);
        assert!(
            shown.contains("SILENT") && shown.ends_with("\nnode-b: it is so\n  seen: this\n  do:   that\n"),
            "{shown}"
        );
        assert_eq!(summary(&[ill]), "1, 0 answer(s) probes, 1 with a problem: see `podwire peers`");
        assert!(text(&[peer(None)]).contains("not probed"));
        assert_eq!((text(&[]).as_str(), summary(&[]).as_str()), ("no peers\n", "0, not probed"));
    }
}
