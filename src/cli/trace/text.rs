use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::Sink;
use crate::cli::output;
use crate::control::api::trace::{Direction, End, Flow, Outcome, Packet, Side};

/// A line per packet, for people.
#[derive(Debug, Default)]
pub struct Lines {
    kept: String,
}

impl Sink for Lines {
    fn packet(&mut self, packet: &Packet) -> io::Result<()> {
        self.kept += &line(packet);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        output::write(std::mem::take(&mut self.kept))
    }

    fn end(&mut self, _: &End) -> io::Result<()> {
        Ok(())
    }
}

/// `10:47:31.123456789 pod pw7 from-pod 10.244.1.2:4000 > 10.244.2.3:5000 UDP, 142 bytes: forwarded to node-b (192.168.1.3)`
fn line(packet: &Packet) -> String {
    let Packet { interface, length, lost, .. } = packet;
    let direction = match packet.direction {
        Direction::FromPod => "from pod",
        Direction::ToPod => "to pod",
        Direction::Local => "local",
    };
    let side = match packet.side {
        Side::Pod => "pod ",
        Side::Wire => "wire",
    };
    let flow = packet.flow.as_ref().map_or_else(|| "no IP packet".to_owned(), flow);
    let mut text = String::new();
    if *lost > 0 {
        let _ = writeln!(text, "({lost} packets lost by the trace)");
    }
    let _ = writeln!(
        text,
        "{} {side} {interface:<12} {direction:<8} {flow}, {length} bytes: {}",
        time_of_day(packet.time_ns),
        verdict(packet)
    );
    text
}

/// What became of it and why; also the comment in files.
pub(super) fn verdict(packet: &Packet) -> String {
    let Packet { verdict, meaning, .. } = packet;
    match (packet.outcome, &packet.next_hop) {
        (Outcome::Dropped, _) => format!("dropped by {}: {verdict} ({meaning})", packet.seen_by),
        (Outcome::Kernel, _) => format!("left to the kernel path by {}: {verdict} ({meaning})", packet.seen_by),
        (Outcome::Fast, Some(hop)) => format!("{verdict} to {hop}"),
        (Outcome::Fast, None) => format!("{verdict} ({meaning})"),
    }
}

fn flow(flow: &Flow) -> String {
    let end = |address: IpAddr, port: Option<u16>| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let protocol = match flow.protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        other => format!("protocol {other}"),
    };
    let inner =
        format!("{} > {} {protocol}", end(flow.source, flow.source_port), end(flow.destination, flow.destination_port));
    match flow.tunnel {
        Some((from, to)) => format!("{inner} in VXLAN {from} > {to}"),
        None => inner,
    }
}

fn time_of_day(time_ns: u64) -> String {
    let (seconds, ns) = (time_ns / 1_000_000_000 % 86_400, time_ns % 1_000_000_000);
    format!("{:02}:{:02}:{:02}.{ns:09}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn packet() -> Packet {
        Packet {
            time_ns: (86_400 * 20_000 + 3_723) * 1_000_000_000 + 45,
            interface: "pw7".into(),
            side: Side::Pod,
            direction: Direction::FromPod,
            seen_by: "worker".into(),
            outcome: Outcome::Fast,
            verdict: "forwarded".into(),
            meaning: "sent on by a worker".into(),
            pod: Some("web".into()),
            next_hop: Some("node-b (192.168.1.3)".into()),
            flow: Some(Flow {
                source: [10, 244, 1, 2].into(),
                destination: [10, 244, 2, 3].into(),
                protocol: 17,
                source_port: Some(4000),
                destination_port: Some(5000),
                tunnel: None,
            }),
            length: 142,
            lost: 0,
            bytes: "0102".into(),
        }
    }

    #[test]
    fn a_line_tells_where_who_and_what_became_of_it() {
        let sent = packet();
        assert_eq!(
            line(&sent),
            "01:02:03.000000045 pod  pw7          from pod 10.244.1.2:4000 > 10.244.2.3:5000 UDP, 142 bytes: \
             forwarded to node-b (192.168.1.3)\n"
        );
        let dropped = Packet {
            outcome: Outcome::Dropped,
            verdict: "no_route".into(),
            meaning: "no remote node".into(),
            next_hop: None,
            flow: None,
            lost: 3,
            ..sent
        };
        let text = line(&dropped);
        assert!(text.starts_with("(3 packets lost by the trace)\n"), "{text}");
        assert!(text.ends_with("no IP packet, 142 bytes: dropped by worker: no_route (no remote node)\n"), "{text}");
    }
}
