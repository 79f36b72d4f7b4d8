//! The flags of a TCP header that segmentation and merging look at (RFC 9293 section 3.1).

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const URG: u8 = 0x20;
pub const CWR: u8 = 0x80;

/// The header's length in bytes, without options.
pub const LEN: usize = 20;

/// Where the flags lie in the header.
pub const FLAGS_AT: usize = 13;

/// Where the checksum lies in the header.
pub const CHECKSUM_AT: usize = 16;
