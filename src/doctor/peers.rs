//! What the daemon's probes of the other nodes have shown.

use super::evidence::Evidence;
use super::finding::Opinion;
use crate::control::api::{Cause, Diagnosis, Peer, Probe, ProbeState};

/// Of the last requests, in per cent; fewer are those of any network.
const MUCH_LOSS: u32 = 10;

pub(super) fn probe(evidence: &Evidence) -> Vec<Opinion> {
    let Some(status) = evidence.daemon.status() else { return vec![Opinion::ok("a daemon would probe the peers")] };
    let bad: Vec<_> = status.peers.iter().filter_map(peer).collect();
    if !bad.is_empty() {
        return bad;
    }
    let probes = status.peers.iter().filter_map(|peer| peer.probe.as_ref());
    if probes.clone().count() == 0 {
        return vec![Opinion::ok("no peer is probed (probe.interval_s)")];
    }
    let answer = probes.filter(|probe| probe.state == ProbeState::Answers).count();
    vec![Opinion::ok(format!("{answer} of {} peer(s) answer", status.peers.len()))]
}

fn peer(Peer { name, probe, .. }: &Peer) -> Option<Opinion> {
    let probe = probe.as_ref()?;
    let Some(Diagnosis { cause, summary, evidence, advice }) = &probe.diagnosis else { return loss(name, probe) };
    let meaning = match cause {
        Cause::MtuTooSmall => "connections of pods open and then hang: large packets are lost without a word",
        _ => "pods here and there do not reach each other by the kernel path, nor perhaps by the fast one",
    };
    Some(Opinion::error(format!("{name}: {summary}: {evidence}"), meaning).advice(advice.as_str()))
}

fn loss(name: &str, Probe { recent, recent_lost, .. }: &Probe) -> Option<Opinion> {
    let is_much = *recent_lost > 1 && recent_lost * 100 >= recent * MUCH_LOSS;
    is_much.then(|| {
        Opinion::warning(
            format!("{name}: {recent_lost} of the last {recent} probes were lost"),
            "the way to this peer loses packets, of pods too",
        )
        .advice("look at drops along the way: `podwire stats` here and there, `ip -s link`, the switches between")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::evidence::Daemon;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    fn change(evidence: &mut Evidence, change: impl Fn(&mut Probe)) {
        let Daemon::Well { status, .. } = &mut evidence.daemon else { panic!("the sample has a daemon") };
        change(status.peers[0].probe.as_mut().expect("the sample is probed"));
    }

    #[test]
    fn a_peer_with_a_diagnosis_is_an_error_and_one_that_loses_packets_a_warning() {
        let ill = |probe: &mut Probe| {
            let words = |text: &str| text.to_owned();
            let (summary, evidence, advice) = (words("blocked"), words("nothing comes"), words("open it"));
            probe.diagnosis = Some(Diagnosis { cause: Cause::TunnelSilent, summary, evidence, advice });
        };
        assert_says(probe, |e| change(e, ill), Severity::Error, "node-b: blocked: nothing comes");
        assert_says(probe, |e| change(e, |probe| probe.recent_lost = 4), Severity::Warning, "4 of the last 32");
        assert_says(probe, |e| change(e, |probe| probe.recent_lost = 3), Severity::Ok, "1 of 1 peer(s) answer");
    }
}
