//! All metrics that there are, in one table: what it is called, its labels, and what it tells.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: base units, `_total` for what only grows. No label has
//! more values than the node has workers, queues, pods, peers, ranges or devices, or than a table in the source has rows.

use prometheus::proto::MetricType;

/// Declares [`Metric`] from rows of variant, type, name, labels and help.
macro_rules! metrics {
    ($($variant:ident => $kind:ident $name:literal [$($label:literal),*], $help:literal;)+) => {
        /// A family of series.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Metric { $(#[doc = $help] $variant,)+ }

        impl Metric {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, for people.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }

            /// The names of its labels.
            pub fn labels(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($label),*],)+ }
            }

            pub(super) fn kind(self) -> MetricType {
                match self { $(Self::$variant => MetricType::$kind,)+ }
            }
        }
    };
}

metrics! {
    BuildInfo => GAUGE "podwire_build_info" ["version"], "1, with the version of the daemon";
    Uptime => GAUGE "podwire_uptime_seconds" [], "Time since the daemon started";
    Ready => GAUGE "podwire_ready" [], "Whether a pod can be attached now";
    Problems => GAUGE "podwire_problems" [], "What podwire status lists as wrong now";
    ControlResponse => GAUGE "podwire_control_response_seconds" [], "Time that the daemon's control loop took to answer for these metrics";
    ConfigGeneration => GAUGE "podwire_config_generation" [], "Configurations that were in force since the daemon started, this one included";
    ConfigAccepted => GAUGE "podwire_config_last_reload_successful" [], "Whether the configuration file as it is now is in force, and not refused";
    MasqueradeState => GAUGE "podwire_masquerade_state" ["state"], "1 for the state of the node's own address translation for what leaves the cluster: off, on, or failed";
    NatCheck => GAUGE "podwire_nat_check" ["check"], "1 for what is done about flows that others translate: none, lookup (each is looked up in conntrack), or kernel (all goes by the kernel path)";
    UplinkUp => GAUGE "podwire_uplink_up" ["device"], "Whether the device that carries the overlay is up";
    OverlayMtu => GAUGE "podwire_overlay_mtu_bytes" [], "The largest IP packet that a pod can send";
    Peers => GAUGE "podwire_peers" ["path"], "Remote nodes by the path that packets for them take: fast (the workers) or kernel";
    PeersProbed => GAUGE "podwire_peers_probed" ["state"], "Remote nodes by how they answer probes through the overlay: answers, silent, or unknown (too little was seen yet); absent while probes are off";
    PeersIll => GAUGE "podwire_peers_ill" ["cause"], "Remote nodes with which something is wrong, by cause: podwire peers has the words";
    PeerReachable => GAUGE "podwire_peer_reachable" ["peer"], "Whether the peer answers probes through the overlay";
    PeerRtt => GAUGE "podwire_peer_probe_rtt_seconds" ["peer"], "Round-trip time of the last answered probe of the peer, by the kernel path";
    PeerSent => COUNTER "podwire_peer_probe_sent_packets_total" ["peer"], "Probes of the peer that were answered or lost";
    PeerLost => COUNTER "podwire_peer_probe_lost_packets_total" ["peer"], "Probes of the peer that were not answered in time";

    KubernetesState => GAUGE "podwire_kubernetes_state" ["state"], "1 for the state of the Kubernetes API as the source: connecting (not reached yet), following, or away; absent without one";
    KubernetesAge => GAUGE "podwire_kubernetes_age_seconds" [], "Time since the Kubernetes API last showed that it is alive; absent while it never did";
    KubernetesNodes => GAUGE "podwire_kubernetes_nodes" [], "Nodes of the cluster as last heard of, this one among them";

    DataplaneState => GAUGE "podwire_dataplane_state" ["state"], "1 for the state of the data plane: running, kernel (off as configured), or failed";
    DataplaneInfo => GAUGE "podwire_dataplane_info" ["mode", "xdp", "memory"], "1, with the configured mode, how the XDP program is attached, and what backs the packet memory; while workers run";
    SteeringPackets => COUNTER "podwire_steering_packets_total" ["program", "verdict", "path"], "Packets by verdict of the steering programs: to the fast path, the kernel path, or dropped";

    WorkerInfo => GAUGE "podwire_worker_info" ["worker", "core"], "1, with the CPU of the worker";
    WorkerPinned => GAUGE "podwire_worker_pinned" ["worker"], "Whether the worker runs on its CPU alone";
    WorkerHealth => GAUGE "podwire_worker_health" ["worker", "state"], "1 for the state of the worker: well, or on probation because it was away or starved of packet memory";
    HeartbeatFresh => GAUGE "podwire_worker_heartbeat_fresh" ["worker"], "Whether the steering programs hand packets to the worker";
    HeartbeatAge => GAUGE "podwire_worker_heartbeat_age_seconds" ["worker"], "Time since the worker last showed that it is alive, which a sleeping one does every second; absent while it has no heartbeat";
    WorkerSeconds => COUNTER "podwire_worker_seconds_total" ["worker", "state"], "Time of the worker by what it did: busy (passes that found work), idle (passes that found none), asleep";
    PassDuration => HISTOGRAM "podwire_worker_pass_duration_seconds" ["worker", "work"], "Duration of a pass of the worker's loop, that found work or none";
    WorkerPackets => COUNTER "podwire_worker_packets_total" ["worker", "direction"], "Packets that the worker has carried, a super-packet counting once";
    WorkerBytes => COUNTER "podwire_worker_bytes_total" ["worker", "direction"], "Bytes that the worker has carried, outer headers included on the wire";
    WorkerSuperPackets => COUNTER "podwire_worker_super_packets_total" ["worker", "direction"], "TCP super-packets that the worker has taken from pods or handed to them";
    WorkerMerged => COUNTER "podwire_worker_merged_packets_total" ["worker"], "Packets from the wire that were merged into super-packets for pods";
    WorkerInTrains => COUNTER "podwire_worker_packets_in_trains_total" ["worker"], "Packets that the worker has handed to pods several by one system call";
    WorkerDropped => COUNTER "podwire_worker_dropped_packets_total" ["worker", "reason"], "Packets that the worker has dropped, by reason";
    WorkerLost => COUNTER "podwire_worker_lost_packets_total" ["worker", "ring"], "Packets that the kernel lost on their way to the worker, because a ring was full";
    WorkerLostClaims => COUNTER "podwire_worker_lost_claims_total" ["worker"], "Packets of pods that were claimed for the worker and never came, for whatever reason";
    WorkerBogus => COUNTER "podwire_worker_bogus_frames_total" ["worker"], "Frame addresses returned by the kernel that were not lent to it; ignored";
    WorkerPolls => COUNTER "podwire_worker_polls_total" ["worker"], "Passes of the worker's loop";
    WorkerBusyPolls => COUNTER "podwire_worker_busy_polls_total" ["worker"], "Passes of the worker's loop that found work";
    WorkerSleeps => COUNTER "podwire_worker_sleeps_total" ["worker"], "Times that the worker went to sleep";
    WorkerWakeups => COUNTER "podwire_worker_wakeups_total" ["worker"], "System calls that the worker made to start the kernel's sending";
    WorkerAbsences => COUNTER "podwire_worker_absences_total" ["worker"], "Times that the worker was away for longer than its heartbeat may age";
    WorkerStarvations => COUNTER "podwire_worker_starvations_total" ["worker"], "Times that the worker ran out of packet memory and none came back";
    WorkerProbations => COUNTER "podwire_worker_probations_total" ["worker"], "Times that the worker lost its heartbeat for a probation, in which the kernel path carries";
    WorkerFrames => GAUGE "podwire_worker_frames" ["worker", "place"], "The worker's packet memory in frames, by where they are: pool (free), fill (lent to the kernel to receive), send (lent to send), hands";

    QueuePackets => COUNTER "podwire_queue_packets_total" ["queue", "direction"], "Packets by AF_XDP queue of the uplink";
    QueueBytes => COUNTER "podwire_queue_bytes_total" ["queue", "direction"], "Bytes by AF_XDP queue of the uplink, outer headers included";
    QueueLost => COUNTER "podwire_queue_lost_packets_total" ["queue"], "Packets that the kernel could not deliver to the AF_XDP socket of the queue";
    QueueZeroCopy => GAUGE "podwire_queue_zero_copy" ["queue"], "Whether the device writes straight into the packet memory";

    Pods => GAUGE "podwire_pods" [], "Pods that are attached";
    FaultyPods => GAUGE "podwire_faulty_pods" [], "Pods whose wiring is not as it should be";
    PodPackets => COUNTER "podwire_pod_packets_total" ["namespace", "pod", "attachment", "direction"], "Packets of the pod by the fast path, a super-packet counting once";
    PodBytes => COUNTER "podwire_pod_bytes_total" ["namespace", "pod", "attachment", "direction"], "Bytes of the pod by the fast path";
    PodLost => COUNTER "podwire_pod_lost_packets_total" ["namespace", "pod", "attachment"], "Packets that the kernel refused to deliver to the pod";
    PodInFlight => GAUGE "podwire_pod_in_flight_packets" ["namespace", "pod", "attachment"], "Packets of the pod that were claimed for a worker and have not reached it yet";

    IpamCapacity => GAUGE "podwire_ipam_capacity_addresses" ["range"], "Addresses of the range that can be given to pods";
    IpamAddresses => GAUGE "podwire_ipam_addresses" ["range", "state"], "Addresses of the range by state: used, quarantined (released a short time ago), or free";

    DevicePackets => COUNTER "podwire_device_packets_total" ["device", "direction"], "The kernel's count of packets on the uplink and the VXLAN device";
    DeviceBytes => COUNTER "podwire_device_bytes_total" ["device", "direction"], "The kernel's count of bytes on the uplink and the VXLAN device";
    DeviceDropped => COUNTER "podwire_device_dropped_packets_total" ["device", "direction"], "The kernel's count of packets that the uplink or the VXLAN device dropped";

    ProcessCpuSeconds => COUNTER "process_cpu_seconds_total" [], "User and system CPU time of the daemon, its workers included";
    ProcessStartTime => GAUGE "process_start_time_seconds" [], "Start of the daemon, in seconds since 1970";
    ProcessVirtualMemory => GAUGE "process_virtual_memory_bytes" [], "Virtual memory of the daemon";
    ProcessResidentMemory => GAUGE "process_resident_memory_bytes" [], "Resident memory of the daemon, packet memory included";
    ProcessThreads => GAUGE "process_threads" [], "Threads of the daemon";
    ProcessOpenFds => GAUGE "process_open_fds" [], "Open file descriptors of the daemon";
    ProcessMaxFds => GAUGE "process_max_fds" [], "The most file descriptors that the daemon may open";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names = HashSet::new();
        for (at, &metric) in Metric::ALL.iter().enumerate() {
            let name = metric.name();
            assert!(metric as usize == at && names.insert(name), "{name}");
            assert!(["podwire_", "process_"].iter().any(|prefix| name.starts_with(prefix)), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind() == MetricType::COUNTER, "{name}");
            assert!(!metric.help().is_empty() && !metric.help().ends_with('.'), "{name}");
        }
    }
}
