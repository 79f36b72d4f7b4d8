//! Network namespaces with veth pairs, and raw sockets on them.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use podwire::control::netns::{self, Netns};
use podwire::ids::IfIndex;
use podwire::steer::{Pins, Steer, SteerConfig};

const SOL_PACKET: libc::c_int = libc::SOL_PACKET;

/// A namespace that is removed when dropped. Nothing in it speaks IPv6 by itself.
pub struct Lab {
    name: String,
    netns: Netns,
}

impl Lab {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pwst{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        command("ip", &["netns", "add", &name]);
        let netns = Netns::open(&Path::new("/run/netns").join(&name)).unwrap();
        let lab = Self { name, netns };
        lab.within(|| {
            for scope in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
            }
        });
        lab.ip("link set lo up");
        lab
    }

    /// Runs `ip` inside, its arguments parted by spaces.
    pub fn ip(&self, arguments: &str) {
        self.ip_output(arguments);
    }

    /// What `ip` prints inside.
    pub fn ip_output(&self, arguments: &str) -> String {
        let arguments: Vec<_> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        command("ip", &arguments)
    }

    /// Runs `tc` inside, its arguments parted by spaces.
    pub fn tc(&self, arguments: &str) {
        self.tc_output(arguments);
    }

    /// What `tc` prints inside.
    pub fn tc_output(&self, arguments: &str) -> String {
        let arguments: Vec<_> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        command("tc", &arguments)
    }

    /// A veth pair, both ends up.
    pub fn veth(&self, name: &str, peer: &str) {
        self.ip(&format!("link add {name} mtu 9000 type veth peer name {peer} mtu 9000"));
        self.ip(&format!("link set {name} up"));
        self.ip(&format!("link set {peer} up"));
    }

    /// Moves a device to `other`.
    pub fn give(&self, device: &str, other: &Self) {
        self.ip(&format!("link set {device} netns {}", other.name));
        other.ip(&format!("link set {device} up"));
    }

    /// Gives the namespace's conntrack entries, each as arguments of `conntrack -I`.
    pub fn track(&self, entries: &[String]) {
        let lines: Vec<_> = entries.iter().map(|entry| format!("-I {entry} -t 600\n")).collect();
        self.within(|| {
            let mut loader = Command::new("conntrack")
                .args(["-R", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            loader.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
            assert!(loader.wait().unwrap().success(), "conntrack -R");
        });
    }

    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.within(work).unwrap()
    }

    /// Programs of this namespace, loaded as the next process would.
    pub fn load(&self, config: &SteerConfig) -> Steer {
        Steer::load(config, Pins::open(self.cookie()).unwrap()).unwrap()
    }

    pub fn cookie(&self) -> u64 {
        self.within(netns::cookie).unwrap()
    }

    pub fn ifindex(&self, device: &str) -> IfIndex {
        let device = CString::new(device).unwrap();
        // SAFETY: the name is a string that ends with 0 and outlives the call.
        let index = self.within(|| unsafe { libc::if_nametoindex(device.as_ptr()) });
        assert_ne!(index, 0, "{device:?}");
        IfIndex(index)
    }

    /// A raw socket on `device`.
    pub fn socket(&self, device: &str, protocol: libc::c_int) -> Raw {
        let ifindex = self.ifindex(device);
        self.within(|| Raw::open(ifindex, protocol).unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        Pins::find(self.cookie()).map(Pins::remove);
        command("ip", &["netns", "del", &self.name]);
    }
}

fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A frame as a tap sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Tapped {
    pub vlan: Option<u16>,
    pub frame: Vec<u8>,
}

/// An AF_PACKET socket that waits for at most 300 ms.
pub struct Raw(OwnedFd);

impl Raw {
    fn open(ifindex: IfIndex, protocol: libc::c_int) -> io::Result<Self> {
        let protocol = u16::try_from(protocol).unwrap().to_be();
        // protocol 0: nothing is received before the socket is bound
        // SAFETY: touches no memory of ours.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the call made this descriptor for us.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let timeout = libc::timeval { tv_sec: 0, tv_usec: 300_000 };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        socket.set(SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
            sll_protocol: protocol,
            sll_ifindex: i32::try_from(ifindex.0).unwrap(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
        // SAFETY: `address` is of the length given and outlives the call.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
        Ok(socket)
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
        let value: *const T = value;
        // SAFETY: `value` is a plain struct or integer of the length given.
        check(unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, value.cast(), length) }).map(drop)
    }

    /// Joins a fanout group in which `program` chooses the member.
    pub fn join(&self, group: i32, program: BorrowedFd<'_>) {
        const EBPF: i32 = 7;
        const IGNORE_OUTGOING: i32 = 0x4000;
        const FANOUT_DATA: i32 = 22;
        self.set(SOL_PACKET, libc::PACKET_FANOUT, &(group | (EBPF | IGNORE_OUTGOING) << 16)).unwrap();
        self.set(SOL_PACKET, FANOUT_DATA, &program.as_raw_fd()).unwrap();
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the pointer and length are those of `frame`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", io::Error::last_os_error());
    }

    /// Sends `frame` as an skb of which only the first `linear` bytes are linear; it must be larger than a page.
    pub fn send_paged(&self, frame: &[u8], linear: u16) {
        self.set(SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32).unwrap();
        let mut header = [0; 10];
        header[2..4].copy_from_slice(&linear.to_le_bytes());
        self.send(&[&header, frame].concat());
    }

    /// The next frame that came to the device, or `None` after the time-out.
    pub fn receive(&self) -> Option<Tapped> {
        let mut frame = vec![0_u8; 16 * 1024];
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: all zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points to memory of the lengths that it states.
        let received = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        frame.truncate(usize::try_from(received).ok()?);
        // SAFETY: the kernel has filled in the control buffer and its length.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        assert!(!first.is_null(), "PACKET_AUXDATA is on");
        // SAFETY: a whole control message is there; the only one asked for is tpacket_auxdata.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: as above.
        let aux = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
        let vlan = (aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(aux.tp_vlan_tci);
        Some(Tapped { vlan, frame })
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
