//! One netlink socket of any protocol, for requests and their answers.

use std::io;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator, Parseable,
};
use netlink_sys::{Socket, SocketAddr};

/// More than the kernel packs into one datagram of a dump (`NLMSG_GOODSIZE` and the 32 KiB cap
/// of `netlink_dump`, `net/netlink/af_netlink.c`).
const BUFFER: usize = 64 << 10;

/// Requests that are sent at once. Their answers, of which each takes a buffer of the kernel's (of less than 1 KiB, after
/// `netlink_trim`, `net/netlink/af_netlink.c`), fit the socket,
const BATCH: usize = 64;
/// which takes twice as many bytes, where the machine allows so many (`net.core.rmem_max`).
const RECEIVE_BUFFER: libc::c_int = 256 << 10;

/// How often an interrupted dump is taken again before giving up.
const DUMP_TRIES: usize = 16;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// `NLMSGERR_ATTR_MSG` (`include/uapi/linux/netlink.h`).
const ATTR_MSG: u16 = 1;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel's own words where it gives some.
    #[error("{source}{}", if explanation.is_empty() { String::new() } else { format!(" ({explanation})") })]
    Refused { source: io::Error, explanation: String },
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(String),
    #[error("the kernel's tables changed during each of {DUMP_TRIES} attempts to read them")]
    Restless,
}

impl NetlinkError {
    /// The kernel's refusal as an errno.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the object of the request was not there.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
    }
}

/// A socket for requests. Beside an answer itself it takes a buffer of [`BUFFER`] bytes.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// By which the kernel knows this socket.
    port: u32,
}

impl Channel {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER), port })
    }

    /// The number by which the kernel names this socket where it tells of what was asked by it.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends a request; returns the object that answers it, or `None` when the kernel acknowledges without one.
    pub fn ask<M>(&mut self, message: M, flags: u16) -> Result<Option<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(message, NLM_F_REQUEST | flags)?;
        self.answer()
    }

    /// Sends requests that get one answer each, many at a time; the kernel carries them out in order, whatever becomes of
    /// those before. Returns the answer to each, as [`Channel::ask`] does.
    pub fn ask_all<M>(
        &mut self,
        requests: impl IntoIterator<Item = (M, u16)>,
    ) -> Result<Vec<Result<Option<M>, NetlinkError>>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut results = Vec::new();
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let sent = requests.by_ref().take(BATCH);
            let count = sent.map(|(message, flags)| self.put(&mut bytes, message, NLM_F_REQUEST | flags)).count();
            self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
            results.extend(self.answers(first, count)?);
        }
        Ok(results)
    }

    /// Asks for all objects, again when they changed meanwhile. Those that do not decode are left out.
    pub fn dump<M>(&mut self, message: &M) -> Result<Vec<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_TRIES {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(objects) = self.objects()? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Restless)
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        self.put(&mut bytes, message, flags);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// Appends a request with the next sequence number.
    fn put<M: NetlinkSerializable>(&mut self, bytes: &mut Vec<u8>, message: M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let begin = bytes.len();
        bytes.resize(begin + request.buffer_len().next_multiple_of(4), 0);
        request.serialize(&mut bytes[begin..]);
    }

    /// The first answers to `count` requests, of which the first had the sequence number `first`.
    fn answers<M: NetlinkDeserializable>(
        &mut self,
        first: u32,
        count: usize,
    ) -> Result<Vec<Result<Option<M>, NetlinkError>>, NetlinkError> {
        let mut results: Vec<_> = std::iter::repeat_with(|| None).take(count).collect();
        let mut awaited = count;
        while awaited > 0 {
            self.receive()?;
            for message in messages::<M>(&self.buffer) {
                let Message { sequence, answer } = message?;
                let place = usize::try_from(sequence.wrapping_sub(first)).ok().and_then(|at| results.get_mut(at));
                if let Some(result @ None) = place {
                    *result = Some(answer.and_then(|answer| match answer {
                        Answer::Object(object, _) => object.map(Some),
                        Answer::End => Ok(None),
                    }));
                    awaited -= 1;
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// The first answer to the last request.
    fn answer<M: NetlinkDeserializable>(&mut self) -> Result<Option<M>, NetlinkError> {
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                match message?.to(self.sequence)? {
                    Some(Answer::Object(object, _)) => return object.map(Some),
                    Some(Answer::End) => return Ok(None),
                    None => {}
                }
            }
        }
    }

    /// The objects of a dump, or `None` when it was interrupted.
    fn objects<M: NetlinkDeserializable>(&mut self) -> Result<Option<Vec<M>>, NetlinkError> {
        let mut objects = Vec::new();
        let mut interrupted = false;
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                match message?.to(self.sequence)? {
                    Some(Answer::Object(object, flags)) => {
                        interrupted |= flags & NLM_F_DUMP_INTR != 0;
                        objects.extend(object.ok());
                    }
                    Some(Answer::End) => return Ok((!interrupted).then_some(objects)),
                    None => {}
                }
            }
        }
    }

    /// Fills the buffer with one datagram of the kernel.
    fn receive(&mut self) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Ok((length, _)) if length > self.buffer.len() => {
                    return Err(NetlinkError::Malformed(format!("a datagram of {length} bytes")));
                }
                Ok((_, sender)) if sender.port_number() == 0 => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // After an overrun the kernel drops all answers until it finds the socket empty.
                    while self.socket.recv_from(&mut self.buffer, libc::MSG_DONTWAIT).is_ok() {
                        self.buffer.clear();
                    }
                    return Err(error.into());
                }
            }
        }
    }
}

/// One message of an answer.
enum Answer<M> {
    /// An object, or why it does not decode, and the message's flags.
    Object(Result<M, NetlinkError>, u16),
    /// The acknowledgement, or the end of a dump.
    End,
}

/// A message of the kernel's.
struct Message<M> {
    /// The sequence number of the request that it answers.
    sequence: u32,
    /// A refusal is an error.
    answer: Result<Answer<M>, NetlinkError>,
}

impl<M> Message<M> {
    /// What it says, if it answers the request of that number.
    fn to(self, sequence: u32) -> Result<Option<Answer<M>>, NetlinkError> {
        if self.sequence == sequence { self.answer.map(Some) } else { Ok(None) }
    }
}

/// The messages of `datagram` that answer something; an error where it cannot be taken apart.
fn messages<M: NetlinkDeserializable>(datagram: &[u8]) -> impl Iterator<Item = Result<Message<M>, NetlinkError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        loop {
            if rest.len() < HEADER {
                return None;
            }
            let message = match NetlinkBuffer::new_checked(rest) {
                Ok(buffer) => {
                    let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX).min(rest.len());
                    let (message, tail) = rest.split_at(length);
                    rest = tail.get(length.next_multiple_of(4) - length..).unwrap_or_default();
                    message
                }
                Err(error) => {
                    rest = &[];
                    return Some(Err(NetlinkError::Malformed(error.to_string())));
                }
            };
            if let Some(message) = read(message).transpose() {
                return Some(message);
            }
        }
    })
}

/// What `message` says, if it is an answer.
fn read<M: NetlinkDeserializable>(message: &[u8]) -> Result<Option<Message<M>>, NetlinkError> {
    let malformed = |error: netlink_packet_core::DecodeError| NetlinkError::Malformed(error.to_string());
    let buffer = NetlinkBuffer::new_checked(message).map_err(malformed)?;
    let NetlinkHeader { sequence_number: sequence, flags, .. } = NetlinkHeader::parse(&buffer).map_err(malformed)?;
    let answer = match NetlinkMessage::<M>::deserialize(message).map(|message| message.payload) {
        Err(error) => Ok(Answer::Object(Err(malformed(error)), flags)),
        Ok(NetlinkPayload::Error(error)) if error.code.is_some() => Err(refusal(&error, flags)),
        Ok(NetlinkPayload::Done(done)) if done.code < 0 => {
            Err(NetlinkError::Refused { source: io::Error::from_raw_os_error(-done.code), explanation: String::new() })
        }
        Ok(NetlinkPayload::Error(_) | NetlinkPayload::Done(_)) => Ok(Answer::End),
        Ok(NetlinkPayload::InnerMessage(object)) => Ok(Answer::Object(Ok(object), flags)),
        Ok(_) => return Ok(None),
    };
    Ok(Some(Message { sequence, answer }))
}

/// A refusal and its explanation, which follows the copied request header (extended
/// acknowledgement, `Documentation/userspace-api/netlink/intro.rst`).
fn refusal(error: &ErrorMessage, flags: u16) -> NetlinkError {
    let attributes = if flags & NLM_F_ACK_TLVS == 0 { None } else { error.header.get(HEADER..) };
    let message = NlasIterator::new(attributes.unwrap_or_default())
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
    NetlinkError::Refused { source: error.to_io(), explanation: message.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_sys::protocols::NETLINK_ROUTE;

    use super::super::route::question;
    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn noise_in_a_datagram_never_panics_and_ends() {
        let mut state = 1_u32;
        for length in 0..600 {
            let noise: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_be_bytes()[0] % 24
                })
                .collect();
            let _ = messages::<RouteNetlinkMessage>(&noise).take(1000).count();
        }
    }

    #[test]
    fn many_requests_have_an_answer_each() {
        let mut channel = Channel::open(NETLINK_ROUTE).unwrap();
        let answers = channel.ask_all((0..3 * BATCH).map(|_| (question(HERE), 0))).unwrap();
        assert!(answers.len() == 3 * BATCH && answers.iter().all(|answer| matches!(answer, Ok(Some(_)))));
    }

    #[test]
    fn answers_that_do_not_fit_are_an_error_and_later_ones_are_heard() {
        let mut channel = Channel::open(NETLINK_ROUTE).unwrap();
        channel.socket.set_rx_buf_sz::<libc::c_int>(0).unwrap();
        assert!(channel.ask_all((0..BATCH).map(|_| (question(HERE), 0))).is_err());
        assert!(channel.ask(question(HERE), 0).unwrap().is_some());
    }
}
