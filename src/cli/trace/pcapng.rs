//! Files that Wireshark and its like read: pcapng, as draft-ietf-opsawg-pcapng describes it (sections 4.1 to 4.3), in this
//! machine's byte order, with a description of each device before its first packet.

use std::collections::HashMap;
use std::io::{self, Write};

use super::Sink;
use super::text::verdict;
use crate::control::api::trace::{Direction, End, Packet, Side};

/// Block types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// The section's length is not told.
const UNKNOWN: u64 = u64::MAX;

const ETHERNET: u16 = 1;

/// Options; each block type numbers its own from 2.
const END_OF_OPTIONS: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_TIME: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const PACKET_LOST: u16 = 4;

/// The time's unit as a negative power of ten.
const NANOSECONDS: u8 = 9;

/// Values of the packet flags: seen from the node, as a capture at the device would be.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes packets to a file.
pub struct Pcapng<W> {
    out: W,
    /// By name, the number of each device that was described.
    devices: HashMap<String, u32>,
}

impl<W: Write> Pcapng<W> {
    /// Begins a file.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(0x1a2b_3c4d_u32.to_ne_bytes());
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        body.extend(UNKNOWN.to_ne_bytes());
        option(&mut body, SECTION_APPLICATION, concat!("podwire ", env!("CARGO_PKG_VERSION")).as_bytes());
        block(&mut out, SECTION, body)?;
        out.flush()?;
        Ok(Self { out, devices: HashMap::new() })
    }

    /// The number of a packet's device, which is described first if it was not.
    fn device(&mut self, packet: &Packet) -> io::Result<u32> {
        if let Some(&number) = self.devices.get(&packet.interface) {
            return Ok(number);
        }
        let description = match (packet.side, &packet.pod) {
            (Side::Wire, _) => "the uplink".to_owned(),
            (Side::Pod, Some(pod)) => format!("the host end of pod {pod}"),
            (Side::Pod, None) => "from a pod that is not known".to_owned(),
        };
        let mut body = Vec::new();
        body.extend(ETHERNET.to_ne_bytes());
        body.extend([0; 2]);
        // no limit
        body.extend(0_u32.to_ne_bytes());
        option(&mut body, INTERFACE_NAME, packet.interface.as_bytes());
        option(&mut body, INTERFACE_DESCRIPTION, description.as_bytes());
        option(&mut body, INTERFACE_TIME, &[NANOSECONDS]);
        block(&mut self.out, INTERFACE, body)?;
        let number = u32::try_from(self.devices.len()).map_err(io::Error::other)?;
        self.devices.insert(packet.interface.clone(), number);
        Ok(number)
    }
}

impl<W: Write> Sink for Pcapng<W> {
    fn packet(&mut self, packet: &Packet) -> io::Result<()> {
        let device = self.device(packet)?;
        let bytes = unhex(&packet.bytes);
        let (captured, length) = (u32::try_from(bytes.len()), u32::try_from(packet.length));
        let is_inbound = match (packet.side, packet.direction) {
            (Side::Pod, Direction::ToPod) | (Side::Wire, Direction::FromPod) => false,
            (Side::Pod, Direction::FromPod | Direction::Local) | (Side::Wire, _) => true,
        };
        let mut body = Vec::new();
        body.extend(device.to_ne_bytes());
        // The upper half comes first in either byte order.
        for half in [packet.time_ns >> 32, packet.time_ns & 0xffff_ffff] {
            body.extend(u32::try_from(half).unwrap_or_default().to_ne_bytes());
        }
        body.extend(captured.map_err(io::Error::other)?.to_ne_bytes());
        body.extend(length.map_err(io::Error::other)?.to_ne_bytes());
        padded(&mut body, &bytes);
        option(&mut body, COMMENT, verdict(packet).as_bytes());
        option(&mut body, PACKET_FLAGS, &(if is_inbound { INBOUND } else { OUTBOUND }).to_ne_bytes());
        if packet.lost > 0 {
            option(&mut body, PACKET_LOST, &packet.lost.to_ne_bytes());
        }
        block(&mut self.out, PACKET, body)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn end(&mut self, _: &End) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a block whose options are in `body`: its length is told before and after.
fn block(out: &mut impl Write, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
    option(&mut body, END_OF_OPTIONS, &[]);
    let length = u32::try_from(body.len() + 12).map_err(io::Error::other)?.to_ne_bytes();
    out.write_all(&[&kind.to_ne_bytes(), &length, &body[..], &length].concat())
}

/// Appends an option; what does not fit its length field is cut off.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    body.extend(code.to_ne_bytes());
    body.extend(length.to_ne_bytes());
    padded(body, &value[..length.into()]);
}

/// Appends bytes and what fills them up to a word.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The bytes of a text in hexadecimal, up to where it is not.
fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map_while(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_up_to_where_it_ends() {
        assert_eq!(unhex("00ff7a"), [0, 255, 122]);
        assert_eq!(unhex("01zz02"), [1]);
        assert_eq!(unhex("0"), [0; 0]);
        assert_eq!(unhex("é1"), [0; 0]);
    }

    #[test]
    fn blocks_are_words_with_their_length_at_both_ends() {
        let mut out = Vec::new();
        let mut body = vec![1, 2, 3, 4];
        option(&mut body, COMMENT, b"hello");
        block(&mut out, PACKET, body).unwrap();
        let word = |at: usize| u32::from_ne_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!((out.len(), word(0), word(4), word(out.len() - 4)), (32, PACKET, 32, 32));
        assert_eq!(&out[16..24], b"hello\0\0\0");
        assert_eq!(&out[24..28], [0; 4]);
    }
}
