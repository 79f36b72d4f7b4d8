//! Echo requests and replies: ICMP (RFC 792) and ICMPv6 (RFC 4443 section 4), which differ in the numbers of their types
//! and in who sums up.

use crate::wire::Sum;

/// Type, code, checksum, identifier, sequence number; then the token.
const HEADER: usize = 8;
pub const LEN: usize = HEADER + size_of::<u64>();

/// What tells one request from all others, and comes back in the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Equal for all requests of one daemon.
    pub id: u16,
    pub sequence: u16,
    /// What nobody can guess who has not seen the request.
    pub token: u64,
}

/// The type numbers of request and reply.
pub const fn types(is_ipv6: bool) -> (u8, u8) {
    if is_ipv6 { (128, 129) } else { (8, 0) }
}

impl Echo {
    /// The request, `len` bytes long but at least [`LEN`]; for ICMPv6 without its checksum, which the kernel puts in
    /// (RFC 3542 section 3.1).
    pub fn request(&self, is_ipv6: bool, len: usize) -> Vec<u8> {
        let mut message = vec![types(is_ipv6).0, 0, 0, 0];
        message.extend(self.id.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        message.extend(self.token.to_be_bytes());
        message.resize(len.max(LEN), 0);
        if !is_ipv6 {
            let checksum = Sum::of(&message).checksum().to_be_bytes();
            message.splice(2..4, checksum);
        }
        message
    }

    /// Reads a reply, of which only the beginning need be there. Its checksum is not looked at: the token is longer.
    pub fn of_reply(is_ipv6: bool, message: &[u8]) -> Option<Self> {
        let (&[kind, 0, _, _, i, d, s, q], rest) = message.split_first_chunk::<HEADER>()? else { return None };
        let token = u64::from_be_bytes(*rest.first_chunk()?);
        let echo = Self { id: u16::from_be_bytes([i, d]), sequence: u16::from_be_bytes([s, q]), token };
        (kind == types(is_ipv6).1).then_some(echo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: Echo = Echo { id: 0x1234, sequence: 0xfedc, token: 0x0102_0304_0506_0708 };

    #[test]
    fn a_request_is_as_long_as_asked_and_adds_up() {
        for len in [0, 16, 17, 1422] {
            let message = ECHO.request(false, len);
            assert_eq!((message.len(), message[0]), (len.max(LEN), 8));
            assert!(Sum::of(&message).is_valid());
        }
        let message = ECHO.request(true, 100);
        assert_eq!((message[0], &message[2..4], message.len()), (128, &[0, 0][..], 100));
    }

    #[test]
    fn a_reply_is_read_and_all_else_refused() {
        for is_ipv6 in [false, true] {
            let mut message = ECHO.request(is_ipv6, 40);
            assert_eq!(Echo::of_reply(is_ipv6, &message), None, "a request");
            message[0] = types(is_ipv6).1;
            assert_eq!(Echo::of_reply(is_ipv6, &message), Some(ECHO));
            assert_eq!(Echo::of_reply(is_ipv6, &message[..LEN]), Some(ECHO), "cut off");
            assert_eq!(Echo::of_reply(is_ipv6, &message[..LEN - 1]), None, "too short");
            assert_eq!(Echo::of_reply(!is_ipv6, &message), None, "of the other family");
            message[1] = 1;
            assert_eq!(Echo::of_reply(is_ipv6, &message), None, "another code");
        }
    }
}
