use std::io;
use std::os::fd::BorrowedFd;

use libc::sock_filter;

use crate::xsk::sys;

/// Where a [`Filter`] goes on after a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Next,
    /// So many instructions further than the next one.
    Skip(u8),
    Accept,
    Reject,
}

/// An instruction of a [`Filter`]. Offsets are from where the socket's packets begin, in bytes; a load beyond the end
/// of the packet rejects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Byte(u32),
    Half(u32),
    Word(u32),
    /// The index becomes the length of the IPv4 header at an offset,
    IndexIpv4(u32),
    /// or a number.
    Index(u32),
    /// The same loads from behind the index.
    ByteAt(u32),
    HalfAt(u32),
    WordAt(u32),
    ShiftRight(u32),
    /// Whether what was loaded is this, or has one of these bits set.
    Equal(u32, Then, Then),
    AnyBit(u32, Then, Then),
}

/// Which packets a socket gets: a program for the kernel's classic filter machine
/// (Documentation/networking/filter.rst), of at most 250 steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(pub Vec<Step>);

impl Filter {
    /// Has the kernel throw away what the filter does not accept; the socket must not be receiving yet, or have been
    /// emptied after. Packets are cut to `snap` bytes.
    pub fn attach(&self, socket: BorrowedFd<'_>, snap: u32) -> io::Result<()> {
        let mut steps = self.assemble(snap);
        let len = u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
        // SAFETY: it refers to the steps, which outlive the call (invariant 4).
        unsafe { sys::set_referring_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program) }
    }

    /// The steps, then the two ends.
    fn assemble(&self, snap: u32) -> Vec<sock_filter> {
        let steps = self.0.iter().enumerate().map(|(at, step)| step.assemble(self.0.len() - at - 1));
        let ends = [snap, 0].map(|bytes| instruction(libc::BPF_RET | libc::BPF_K, bytes, 0, 0));
        steps.chain(ends).collect()
    }
}

impl Step {
    /// As the kernel reads it, with `left` more steps before the end.
    fn assemble(self, left: usize) -> sock_filter {
        use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_LD, BPF_LDX, BPF_MSH, BPF_W};
        let load = |size, mode, at| instruction(BPF_LD | size | mode, at, 0, 0);
        let left = u8::try_from(left).unwrap_or(u8::MAX - 1);
        let jump = |then| match then {
            Then::Next => 0,
            Then::Skip(steps) => steps,
            Then::Accept => left,
            Then::Reject => left + 1,
        };
        let test = |kind, value, yes, no| instruction(libc::BPF_JMP | kind | libc::BPF_K, value, jump(yes), jump(no));
        match self {
            Self::Byte(at) => load(BPF_B, BPF_ABS, at),
            Self::Half(at) => load(BPF_H, BPF_ABS, at),
            Self::Word(at) => load(BPF_W, BPF_ABS, at),
            Self::ByteAt(at) => load(BPF_B, BPF_IND, at),
            Self::HalfAt(at) => load(BPF_H, BPF_IND, at),
            Self::WordAt(at) => load(BPF_W, BPF_IND, at),
            Self::IndexIpv4(at) => instruction(BPF_LDX | BPF_B | BPF_MSH, at, 0, 0),
            Self::Index(value) => instruction(BPF_LDX | BPF_W | BPF_IMM, value, 0, 0),
            Self::ShiftRight(bits) => instruction(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, bits, 0, 0),
            Self::Equal(value, yes, no) => test(libc::BPF_JEQ, value, yes, no),
            Self::AnyBit(bits, yes, no) => test(libc::BPF_JSET, bits, yes, no),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "operation codes have 16 bits")]
fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn the_kernel_passes_what_is_accepted_and_cuts_it() {
        use Then::{Accept, Next, Reject, Skip};
        // 4, then a 5 after as many words as the low half of the second byte says; or anything with bit 7 first.
        let filter = Filter(vec![
            Step::Byte(0),
            Step::AnyBit(0x80, Accept, Next),
            Step::Equal(4, Skip(1), Reject),
            Step::Equal(0, Accept, Accept),
            Step::IndexIpv4(1),
            Step::ByteAt(0),
            Step::Equal(5, Accept, Reject),
        ]);
        let (near, far) = UnixDatagram::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        filter.attach(far.as_fd(), 6).unwrap();
        for (packet, passes) in [
            (&[4, 0xf1, 0, 0, 5, 0, 0, 0][..], true),
            (&[4, 1, 0, 0, 6], false),
            (&[4, 2, 0, 0, 5], false),
            (&[3, 1, 0, 0, 5], false),
            (&[0x81], true),
            (&[], false),
        ] {
            let _ = near.send(packet);
            let mut buffer = [0; 64];
            let got = far.recv(&mut buffer).ok();
            assert_eq!(got, passes.then_some(packet.len().min(6)), "{packet:?}");
        }
    }
}
