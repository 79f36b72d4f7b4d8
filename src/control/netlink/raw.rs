//! Messages that are read no further than needed: a header of fixed length, then attributes. What a newer kernel or an
//! unknown module adds cannot make them unreadable.

use std::io;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator};

/// A message whose own header has `HEADER` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawMessage<const HEADER: usize> {
    pub kind: u16,
    /// The header and the attributes; shorter when the message is torn.
    pub body: Vec<u8>,
}

impl<const HEADER: usize> RawMessage<HEADER> {
    pub fn new(kind: u16, header: [u8; HEADER]) -> Self {
        Self { kind, body: header.to_vec() }
    }

    /// The same with a further attribute of four bytes.
    pub fn with(mut self, attribute: u16, value: [u8; 4]) -> Self {
        self.body.extend(8_u16.to_ne_bytes());
        self.body.extend(attribute.to_ne_bytes());
        self.body.extend(value);
        self
    }

    pub fn header(&self) -> Option<&[u8; HEADER]> {
        self.body.first_chunk()
    }

    pub fn attribute(&self, kind: u16) -> Option<Vec<u8>> {
        attribute(self.body.get(HEADER..)?, kind)
    }

    pub fn text(&self, kind: u16) -> Option<String> {
        self.attribute(kind).map(|value| text(&value))
    }
}

/// The value of the first attribute of `kind`.
pub(super) fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let found = NlasIterator::new(attributes).map_while(Result::ok).find(|attribute| attribute.kind() == kind);
    found.map(|attribute| attribute.value().to_vec())
}

/// A string as the kernel writes it, with a 0 at its end.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

impl<const HEADER: usize> NetlinkSerializable for RawMessage<HEADER> {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl<const HEADER: usize> NetlinkDeserializable for RawMessage<HEADER> {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, io::Error> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}
