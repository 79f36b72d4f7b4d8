//! What the data plane counts. One table names every reason for a drop; nothing is dropped without one.

use std::sync::atomic::{AtomicU64, Ordering};

/// Declares an enum whose variants carry a stable label and a help text, in one table.
macro_rules! table {
    ($(#[$meta:meta])* pub enum $name:ident { $($variant:ident => $label:literal, $help:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = $help] $variant,)+ }

        impl $name {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name that status, metrics and logs use.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it means, for people.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}
pub(crate) use table;

table! {
    /// Why a worker dropped a packet.
    pub enum DropReason {
        WireTruncated => "wire_truncated", "a frame from the wire ends inside its outer headers";
        WireNotVxlan => "wire_not_vxlan", "a frame from the wire is neither plain UDP to our VTEP address and port nor an IP packet to the uplink's MAC";
        VxlanFlags => "vxlan_flags", "the VXLAN header has the I flag unset or a reserved bit set";
        VxlanVni => "vxlan_vni", "the VXLAN network identifier is not ours";
        InnerMac => "inner_mac", "the inner destination MAC is not our VTEP's";
        InnerLoop => "inner_loop", "the inner source MAC is our own, or not a unicast address";
        InnerNotIp => "inner_not_ip", "the inner frame carries neither IPv4 nor IPv6";
        InnerMalformed => "inner_malformed", "the inner IP header does not agree with the bytes that came";
        InnerChecksum => "inner_checksum", "the inner IPv4 header checksum is wrong";
        InnerUnsupported => "inner_unsupported", "fragment, IP options or an extension header that the steering program should have left to the kernel";
        EcnIllegal => "ecn_illegal", "congestion was signalled on a packet that does not support it (RFC 6040)";
        TtlExpired => "ttl_expired", "the time to live or hop limit would reach zero";
        NoPod => "no_pod", "no pod of this node has the destination address";
        NoRoute => "no_route", "no remote node owns the destination address";
        TooBig => "too_big", "the packet does not fit the path's MTU";
        VirtioHeader => "virtio_header", "the checksum or segmentation request of a pod's frame does not fit the frame";
        SlotTruncated => "slot_truncated", "a super-packet of a pod was larger than 66 KiB, or found the ring's buffer for them full";
        NoFrame => "no_frame", "packet memory is exhausted";
        TxRingFull => "tx_ring_full", "the uplink's send ring stayed full";
        UplinkRefused => "uplink_refused", "the uplink's device or its queue dropped a frame that was to be sent";
        PodRefused => "pod_refused", "the kernel refused a frame for a pod: its queue is full, or its device is down or gone";
    }
}

table! {
    /// What a worker counts besides drops.
    pub enum Count {
        WireRxPackets => "wire_rx_packets", "frames received from the uplink by AF_XDP";
        WireRxBytes => "wire_rx_bytes", "bytes received from the uplink by AF_XDP, outer headers included";
        WireTxPackets => "wire_tx_packets", "frames sent on the uplink by AF_XDP";
        WireTxBytes => "wire_tx_bytes", "bytes sent on the uplink by AF_XDP, outer headers included";
        PodRxPackets => "pod_rx_packets", "frames taken from pods, a super-packet counting once";
        PodRxBytes => "pod_rx_bytes", "bytes taken from pods";
        PodRxSuper => "pod_rx_super", "super-packets taken from pods";
        PodTxPackets => "pod_tx_packets", "frames handed to pods, a super-packet counting once";
        PodTxBytes => "pod_tx_bytes", "bytes handed to pods";
        PodTxSuper => "pod_tx_super", "super-packets handed to pods, merged of several frames from the uplink";
        PodTxMerged => "pod_tx_merged", "frames that were merged into them";
        PodTxTrains => "pod_tx_trains", "frames handed to pods in trains, several by one system call";
        HubLost => "hub_lost", "frames from pods lost because the packet ring was full";
        ClaimsLost => "claims_lost", "frames from pods that were claimed and never came out of the packet ring, hub_lost among them; found some time later";
        UplinkLost => "uplink_lost", "frames from the wire lost because the AF_XDP receive ring was full or the fill ring empty";
        KernelBogus => "kernel_bogus", "addresses returned by the kernel that were not lent to it; ignored";
        Polls => "polls", "passes of the worker's loop";
        BusyPolls => "busy_polls", "passes that found work";
        Sleeps => "sleeps", "times the worker went to sleep";
        Absences => "absences", "times the worker was away for longer than its heartbeat may age: it hung, was stopped, or waited for its core";
        Starvations => "starvations", "times the worker ran out of packet memory and none came back";
        Probations => "probations", "times the worker lost its heartbeat for a probation, in which the kernel path carries";
        Wakeups => "wakeups", "system calls made to start the kernel's sending";
    }
}

const DROPS: usize = DropReason::ALL.len();
const COUNTS: usize = Count::ALL.len();

/// A worker's counters: plain memory of its own, written out once per pass by [`Tally::publish`].
#[derive(Clone, Debug)]
pub struct Tally {
    drops: [u64; DROPS],
    counts: [u64; COUNTS],
}

impl Default for Tally {
    fn default() -> Self {
        Self { drops: [0; DROPS], counts: [0; COUNTS] }
    }
}

impl Tally {
    /// Counts one dropped packet.
    pub fn drop(&mut self, reason: DropReason) {
        self.drop_all(reason, 1);
    }

    /// Counts `n` packets dropped together.
    pub fn drop_all(&mut self, reason: DropReason, n: usize) {
        self.drops[reason as usize] += n as u64;
    }

    /// Adds `n` to a count.
    pub fn add(&mut self, count: Count, n: u64) {
        self.counts[count as usize] += n;
    }

    /// Sets a count that something else keeps.
    pub fn set(&mut self, count: Count, n: u64) {
        self.counts[count as usize] = n;
    }

    /// Sets a drop count that something else keeps.
    pub fn set_drops(&mut self, reason: DropReason, n: u64) {
        self.drops[reason as usize] = n;
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    pub fn count(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }

    /// All drops together.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Adds another worker's counters to these.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.drops.iter_mut().zip(other.drops) {
            *mine += theirs;
        }
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
    }

    /// Makes these figures visible to readers of `page`.
    pub fn publish(&self, page: &TallyPage) {
        for (cell, value) in page.drops.iter().zip(self.drops) {
            cell.store(value, Ordering::Relaxed);
        }
        for (cell, value) in page.counts.iter().zip(self.counts) {
            cell.store(value, Ordering::Relaxed);
        }
    }
}

/// Where one worker publishes and anyone reads. Each figure is exact; figures of one reading may be a pass apart.
#[derive(Debug)]
pub struct TallyPage {
    drops: [AtomicU64; DROPS],
    counts: [AtomicU64; COUNTS],
}

impl Default for TallyPage {
    fn default() -> Self {
        Self { drops: [const { AtomicU64::new(0) }; DROPS], counts: [const { AtomicU64::new(0) }; COUNTS] }
    }
}

impl TallyPage {
    pub fn read(&self) -> Tally {
        Tally {
            drops: std::array::from_fn(|i| self.drops[i].load(Ordering::Relaxed)),
            counts: std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed)),
        }
    }
}

/// What one port of a worker has carried: written by the worker as it goes, read by anyone.
#[derive(Debug, Default)]
pub struct Traffic {
    pub rx_packets: AtomicU64,
    pub rx_bytes: AtomicU64,
    pub tx_packets: AtomicU64,
    pub tx_bytes: AtomicU64,
    /// Frames that the kernel could not deliver to the port.
    pub lost: AtomicU64,
}

impl Traffic {
    /// Counts received packets. Only the port's worker calls this, so each count is a load and a store.
    pub fn count_rx(&self, packets: u64, bytes: u64) {
        raise(&self.rx_packets, packets);
        raise(&self.rx_bytes, bytes);
    }

    /// Counts sent packets, under the same condition.
    pub fn count_tx(&self, packets: u64, bytes: u64) {
        raise(&self.tx_packets, packets);
        raise(&self.tx_bytes, bytes);
    }
}

fn raise(count: &AtomicU64, n: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Where a worker's frames are between two passes, when none is in its hands.
#[derive(Debug, Default)]
pub struct FramePage {
    /// Free, in the worker's pool.
    pub pool: AtomicU64,
    /// With the kernel to receive into, or received and not read.
    pub fill: AtomicU64,
    /// With the kernel to send, or sent and not taken back.
    pub send: AtomicU64,
    /// Withheld from the worker by a fault that a test provoked.
    pub withheld: AtomicU64,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_unique_and_indexes_match() {
        let labels: HashSet<_> =
            DropReason::ALL.iter().map(|r| r.label()).chain(Count::ALL.iter().map(|c| c.label())).collect();
        assert_eq!(labels.len(), DROPS + COUNTS);
        assert!(DropReason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        assert!(Count::ALL.iter().enumerate().all(|(i, c)| *c as usize == i));
    }

    #[test]
    fn a_page_reads_what_was_published() {
        let (mut tally, page) = (Tally::default(), TallyPage::default());
        tally.drop(DropReason::NoPod);
        tally.add(Count::Polls, 7);
        tally.publish(&page);
        let mut twice = page.read();
        twice.merge(&tally);
        assert_eq!((twice.drops(DropReason::NoPod), twice.count(Count::Polls), twice.dropped()), (2, 14, 2));
    }
}
