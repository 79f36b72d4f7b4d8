//! What is told of a packet: names and words for what a worker or a program saw.

use super::super::api::trace::{self as api, Direction, Outcome, Packet, Side};
use super::names::NameTable;
use super::plan::FORWARDED;
use crate::steer::{Program, Sighting, Verdict};
use crate::trace::{self, Fate, Flow, Point, Record};

/// What it takes to tell of packets.
#[derive(Clone, Copy, Debug)]
pub struct Telling<'a> {
    pub names: &'a NameTable,
    pub vxlan_port: u16,
    /// Nanoseconds from 1970 to where `CLOCK_MONOTONIC` begins.
    pub epoch_ns: u64,
}

impl Telling<'_> {
    /// A packet as a worker saw it.
    pub fn of_worker(self, record: &Record) -> Packet {
        let names = self.names;
        let flow = Flow::read(record.bytes(), self.vxlan_port);
        let pod = flow.as_ref().and_then(|flow| names.pod_of(flow));
        let side = match record.point {
            Point::PodRx | Point::PodTx => Side::Pod,
            Point::WireRx | Point::WireTx => Side::Wire,
        };
        let interface = match side {
            Side::Wire => names.uplink(),
            Side::Pod => pod.map_or(names.hub(), |pod| pod.device.as_str()),
        };
        let (outcome, verdict, meaning, next_hop) = match record.fate {
            Fate::Forwarded(hop) => (Outcome::Fast, FORWARDED, "sent on by a worker", Some(names.hop(hop))),
            Fate::Dropped(reason) => (Outcome::Dropped, reason.label(), reason.help(), None),
        };
        Packet {
            time_ns: self.epoch_ns.saturating_add(record.time_ns),
            interface: interface.to_owned(),
            side,
            direction: record.point.direction().into(),
            seen_by: "worker".to_owned(),
            outcome,
            verdict: verdict.to_owned(),
            meaning: meaning.to_owned(),
            pod: pod.map(|pod| pod.name.clone()),
            next_hop,
            flow: flow.map(Into::into),
            length: record.length as u64,
            lost: 0,
            bytes: hex(record.bytes()),
        }
    }

    /// Which way a packet goes that a program saw, and whose it is as far as its bytes tell.
    pub fn way(self, sighting: &Sighting) -> (trace::Direction, Option<Flow>) {
        let flow = Flow::read(&sighting.bytes, self.vxlan_port);
        let stays = flow.is_some_and(|flow| self.names.pod_with(flow.destination).is_some());
        let direction = match sighting.program {
            Program::Nic | Program::Tunnel => Direction::ToPod,
            Program::Pod if stays => Direction::Local,
            Program::Pod => Direction::FromPod,
        };
        (direction.into(), flow)
    }

    /// A packet as a program saw it, of which `snap` bytes are told.
    pub fn of_program(self, sighting: &Sighting, snap: usize) -> Packet {
        let Sighting { program, verdict, ref bytes, .. } = *sighting;
        let names = self.names;
        let (direction, flow) = self.way(sighting);
        let unknown = || format!("device {}", sighting.device);
        let of_flow = || flow.as_ref().and_then(|flow| names.pod_of(flow));
        let (side, pod, interface) = match program {
            Program::Nic => (Side::Wire, of_flow(), names.uplink().to_owned()),
            Program::Tunnel => {
                (Side::Wire, of_flow(), names.tunnel(sighting.device).map_or_else(unknown, str::to_owned))
            }
            Program::Pod => {
                let pod = names.pod_at(sighting.device);
                (Side::Pod, pod, pod.map_or_else(unknown, |pod| pod.device.clone()))
            }
        };
        let is_redirected = matches!(verdict, Verdict::Local | Verdict::Bypass);
        let to_pod = flow.as_ref().and_then(|flow| names.pod_with(flow.destination)).filter(|_| is_redirected);
        Packet {
            time_ns: self.epoch_ns.saturating_add(sighting.time_ns),
            interface,
            side,
            direction: direction.into(),
            seen_by: program.label().to_owned(),
            outcome: verdict.outcome().into(),
            verdict: verdict.label().to_owned(),
            meaning: verdict.help().to_owned(),
            pod: pod.map(|pod| pod.name.clone()),
            next_hop: to_pod.map(|pod| format!("pod {}", pod.name)),
            flow: flow.map(Into::into),
            length: sighting.length as u64,
            lost: 0,
            bytes: hex(bytes.get(..snap).unwrap_or(bytes)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

impl From<Flow> for api::Flow {
    fn from(flow: Flow) -> Self {
        Self {
            source: flow.source,
            destination: flow.destination,
            protocol: flow.protocol.0,
            source_port: flow.ports.map(|(source, _)| source),
            destination_port: flow.ports.map(|(_, destination)| destination),
            tunnel: flow.outer,
        }
    }
}
