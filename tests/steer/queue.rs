//! The queues of a device, which one AF_XDP socket each may hold.

use podwire::frame::{Pool, Region};
use podwire::ids::QueueId;
use podwire::xsk::{Binding, Error, Options, Socket};

use crate::lab::Lab;
use crate::rig::is_root;

struct Opener {
    lab: Lab,
    region: Region,
    pool: Pool,
}

impl Opener {
    fn new() -> Self {
        let lab = Lab::new();
        lab.veth("uplink", "wire");
        let (region, pool) = Region::map(256).unwrap();
        Self { lab, region, pool }
    }

    fn open(&mut self) -> Result<Socket, Error> {
        let ifindex = self.lab.ifindex("uplink");
        let options = Options { ifindex, queue: QueueId(0), binding: Binding::Copy, ring_size: 64, fill: 64 };
        self.lab.within(|| Socket::open(self.region, &mut self.pool, &options))
    }
}

#[test]
fn a_queue_can_be_taken_again_at_once_when_its_socket_is_closed() {
    if !is_root() {
        return;
    }
    let mut opener = Opener::new();
    for nth in 0..20 {
        let socket = opener.open().unwrap_or_else(|error| panic!("try {nth}: {error}"));
        opener.pool.absorb(socket.close());
    }
    assert_eq!(opener.pool.len(), 256);
}

#[test]
fn a_queue_that_another_socket_holds_is_not_waited_for_without_end() {
    if !is_root() {
        return;
    }
    let mut opener = Opener::new();
    let first = opener.open().unwrap();
    let left = opener.pool.len();
    assert!(matches!(opener.open().unwrap_err(), Error::Taken { queue: 0, .. }));
    assert_eq!(opener.pool.len(), left);
    opener.pool.absorb(first.close());
}
