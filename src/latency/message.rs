/// The shortest message, in bytes.
pub const MIN_BYTES: usize = 24;

const REQUEST: [u8; 8] = *b"podwire?";
const REPLY: [u8; 8] = *b"podwire!";

/// What a request says. Its answer says the same, and is no request, so that two reflectors that are made to speak to
/// each other fall silent; an echo service answers with the request itself.
///
/// ```text
///   0 "podwire?" or "podwire!"   8 run   16 sequence   24 padding
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub run: u64,
    pub sequence: u64,
}

impl Message {
    /// A request of `bytes`, at least [`MIN_BYTES`].
    pub fn request(self, bytes: usize) -> Vec<u8> {
        let mut request = [REQUEST, self.run.to_be_bytes(), self.sequence.to_be_bytes()].concat();
        request.resize(bytes.max(MIN_BYTES), 0);
        request
    }

    /// Reads a request or a reply.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk::<8>()?;
        let (run, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, _) = rest.split_first_chunk::<8>()?;
        let known = [REQUEST, REPLY].contains(kind);
        known.then(|| Self { run: u64::from_be_bytes(*run), sequence: u64::from_be_bytes(*sequence) })
    }
}

/// Makes a request its reply; false, and nothing is changed, when it is none.
pub(super) fn make_reply(bytes: &mut [u8]) -> bool {
    match bytes.split_first_chunk_mut::<8>() {
        Some((kind, rest)) if *kind == REQUEST && rest.len() + 8 >= MIN_BYTES => {
            *kind = REPLY;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_a_reply_once() {
        let message = Message { run: 7, sequence: u64::MAX };
        let mut bytes = message.request(40);
        assert_eq!((bytes.len(), Message::read(&bytes)), (40, Some(message)));
        assert!(make_reply(&mut bytes));
        assert_eq!(Message::read(&bytes), Some(message));
        assert!(!make_reply(&mut bytes), "a reply is not answered");
    }

    #[test]
    fn what_is_short_or_foreign_is_no_message() {
        let bytes = Message { run: 1, sequence: 2 }.request(MIN_BYTES);
        for length in 0..MIN_BYTES {
            assert_eq!(Message::read(&bytes[..length]), None, "{length}");
            assert!(!make_reply(&mut bytes[..length].to_vec()), "{length}");
        }
        assert_eq!(Message::read(&[0; 64]), None);
    }
}
