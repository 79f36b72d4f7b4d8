//! What is on the wire: a capture by `tcpdump`, read with etherparse, which shares no code with podwire.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;
use std::{fmt, fs, thread};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::netns::Netns;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A running capture.
pub struct Capture {
    tcpdump: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Capture {
    /// Captures what `device` of `netns` receives (`-Q in`), as far as `filter` lets it through.
    pub fn start(netns: &Netns, device: &str, filter: &str, file: &Path) -> Self {
        let mut command = netns.command("tcpdump");
        command.args(["-i", device, "-Q", "in", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(file).arg(filter);
        let mut tcpdump = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tcpdump starts");
        let mut stderr = BufReader::new(tcpdump.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).expect("tcpdump speaks"), 0, "tcpdump ended before it listened");
        }
        Self { tcpdump, stderr, file: file.to_owned() }
    }

    /// Ends the capture and returns its frames.
    pub fn frames(mut self) -> Vec<Vec<u8>> {
        thread::sleep(Duration::from_millis(100));
        super::signal(&self.tcpdump, libc::SIGINT);
        self.tcpdump.wait().expect("tcpdump ends");
        drop(self.stderr);
        let bytes = fs::read(&self.file).expect("the capture");
        records(&bytes)
    }
}

/// The packets of a pcap file in this machine's byte order (24 bytes of header; 16 before each packet).
fn records(file: &[u8]) -> Vec<Vec<u8>> {
    let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().expect("4 bytes")) as usize;
    assert!(matches!(word(0), 0xa1b2_c3d4 | 0xa1b2_3c4d), "not a pcap file of this byte order");
    let (mut frames, mut at) = (Vec::new(), 24);
    while at + 16 <= file.len() {
        let (captured, original) = (word(at + 8), word(at + 12));
        assert_eq!(captured, original, "the capture cuts frames");
        let end = at + 16 + captured;
        frames.push(file[at + 16..end.min(file.len())].to_vec());
        at = end;
    }
    frames
}

/// A VXLAN frame taken apart. The checksums in it have been found right.
#[derive(Clone, Debug)]
pub struct Vxlan {
    pub outer_ttl: u8,
    /// DSCP and ECN.
    pub outer_tos: u8,
    pub outer_dont_fragment: bool,
    pub udp_checksum: u16,
    pub outer: Flow,
    pub flags: u8,
    pub reserved_is_zero: bool,
    pub vni: u32,
    pub inner_source_mac: [u8; 6],
    pub inner_destination_mac: [u8; 6],
    pub inner_ttl: u8,
    pub inner_tos: u8,
    /// Inner IP packet's length.
    pub inner_len: usize,
    pub inner: Flow,
}

/// What makes packets belong together. Ports are 0 for fragments and where there are none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            ICMP => "ICMP".to_owned(),
            TCP => "TCP".to_owned(),
            UDP => "UDP".to_owned(),
            ICMPV6 => "ICMPv6".to_owned(),
            other => format!("protocol {other}"),
        };
        let (from, to) = (SocketAddr::from(self.source), SocketAddr::from(self.destination));
        write!(f, "{from} > {to} {protocol}")
    }
}

impl Vxlan {
    /// Takes `frame` apart; an error names the first thing that a receiver would stumble over.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let outer = SlicedPacket::from_ethernet(frame).map_err(|e| format!("outer headers: {e}"))?;
        let outer_ip = Ip::of(&outer)?;
        let Some(TransportSlice::Udp(udp)) = &outer.transport else {
            return Err("outer protocol is not UDP".to_owned());
        };
        if udp.checksum() != 0 || outer_ip.source.is_ipv6() {
            outer_ip.check_transport("outer")?;
        }
        let payload = udp.payload();
        if payload.len() < 8 + 14 {
            return Err(format!("VXLAN payload of {} bytes", payload.len()));
        }
        let (header, inner_frame) = payload.split_at(8);
        let inner = SlicedPacket::from_ethernet(inner_frame).map_err(|e| format!("inner headers: {e}"))?;
        let inner_ip = Ip::of(&inner)?;
        inner_ip.check_transport("inner")?;
        let mac = |at: usize| inner_frame[at..at + 6].try_into().expect("6 bytes");
        Ok(Self {
            outer_ttl: outer_ip.ttl,
            outer_tos: outer_ip.tos,
            outer_dont_fragment: outer_ip.dont_fragment,
            udp_checksum: udp.checksum(),
            outer: outer_ip.flow(&outer),
            flags: header[0],
            reserved_is_zero: header[1..4] == [0; 3] && header[7] == 0,
            vni: u32::from_be_bytes([0, header[4], header[5], header[6]]),
            inner_destination_mac: mac(0),
            inner_source_mac: mac(6),
            inner_ttl: inner_ip.ttl,
            inner_tos: inner_ip.tos,
            inner_len: inner_frame.len() - 14,
            inner: inner_ip.flow(&inner),
        })
    }
}

/// What both IP versions have.
struct Ip<'a> {
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    fragmented: bool,
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn of(packet: &'a SlicedPacket) -> Result<Self, String> {
        match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                let (header, payload) = (ip.header(), ip.payload());
                if sum(&[header.slice()]) != 0xffff {
                    return Err(format!("IPv4 header checksum {:04x} is wrong", header.header_checksum()));
                }
                Ok(Self {
                    ttl: header.ttl(),
                    tos: header.slice()[1],
                    dont_fragment: header.dont_fragment(),
                    fragmented: payload.fragmented,
                    protocol: payload.ip_number.0,
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    payload: payload.payload,
                })
            }
            Some(NetSlice::Ipv6(ip)) => {
                let (header, payload) = (ip.header(), ip.payload());
                Ok(Self {
                    ttl: header.hop_limit(),
                    tos: header.traffic_class(),
                    dont_fragment: true,
                    fragmented: payload.fragmented,
                    protocol: payload.ip_number.0,
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    payload: payload.payload,
                })
            }
            other => Err(format!("neither IPv4 nor IPv6: {other:?}")),
        }
    }

    fn flow(&self, packet: &SlicedPacket) -> Flow {
        let (source, destination) = match &packet.transport {
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            _ => (0, 0),
        };
        Flow { protocol: self.protocol, source: (self.source, source), destination: (self.destination, destination) }
    }

    /// Verifies the checksum of TCP, UDP or ICMP (pseudo headers: RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn check_transport(&self, which: &str) -> Result<(), String> {
        let length = u32::try_from(self.payload.len()).expect("a packet's length").to_be_bytes();
        let addresses = [self.source, self.destination].map(|address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        });
        let pseudo = [addresses.concat().as_slice(), &length, &[0, 0, 0, self.protocol]].concat();
        let total = match self.protocol {
            _ if self.fragmented => return Ok(()),
            ICMP => sum(&[self.payload]),
            TCP | UDP | ICMPV6 => sum(&[&pseudo, self.payload]),
            _ => return Ok(()),
        };
        if total == 0xffff { Ok(()) } else { Err(format!("{which} checksum of protocol {} is wrong", self.protocol)) }
    }
}

/// The ones' complement sum of RFC 1071 over the concatenation of parts, each of even length but the last.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut total: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded")
}

#[test]
fn a_wrong_checksum_is_noticed() {
    let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
    assert_eq!(sum(&[&header]), 0xffff);
    let mut bad = header;
    bad[19] ^= 1;
    assert_ne!(sum(&[&bad]), 0xffff);
}
