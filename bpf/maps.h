/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The maps that control writes and the programs read, and the two that the
 * workers share with them. src/steer/layout.rs and src/shared/mod.rs mirror
 * the layouts; tests compare them through BTF.
 */
#ifndef PODWIRE_MAPS_H
#define PODWIRE_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define MAX_QUEUES 256
#define MAX_WORKERS 256
/* Pod ids are VLAN ids. */
#define MAX_POD_IDS 4096
#define MAX_LOCAL 8192
#define MAX_REMOTE 65536
#define MAX_VTEPS 65536

/* How flows that the node translates are told from others. */
enum nat {
	NAT_NONE,		/* nothing is translated */
	NAT_LOOKUP,		/* conntrack knows what is */
	NAT_KERNEL,		/* only the kernel path knows */
};

/* Where a tunnel ends here. IPv4: mapped (RFC 4291 section 2.5.5.2). */
struct vtep {
	__be32 addr[4];
	__u8 mac[6];
	__u8 is_there;
	__u8 pad;
};

/* Written as a whole while programs read: a reader may see an update half
 * done, and one frame may then take the other path. Nothing is kept of it.
 */
struct config {
	struct vtep vtep4, vtep6;	/* one at least */
	__u64 stale_ns;
	__u64 slots;		/* of a worker's ring on the hub */
	__u64 bulk_bytes;	/* above: the kernel path; 0: never */
	__u64 wake_ns;		/* WAKE_PACKETS wake a worker; 0: each does */
	__u32 vni;
	__u32 max_frame;	/* from the wire, that a worker takes */
	__u32 max_packet;	/* of pods, that a worker takes */
	__u32 pod_mtu;
	__u32 workers;
	__u32 rings;		/* on the hub */
	__u32 hub;		/* ifindex */
	enum nat nat;
	__be16 port;
	__u8 uplink_mac[6];
	__u8 known_vteps_only;	/* drop tunnel packets of others */
	__u8 takes_bare;	/* claim what comes without a tunnel */
	__u8 leaves_tcp;	/* workers take none of it */
	__u8 pad[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} configs SEC(".maps");

/* The AF_XDP sockets of the uplink's queues, and the worker behind each. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} queue_worker SEC(".maps");

/* A pod of this node, by each of its addresses. The two MACs lie as in the
 * Ethernet header of a frame for the pod.
 */
struct local_pod {
	__u32 ifindex;
	__u16 id;
	__u8 mac[6];
	__u8 gateway_mac[6];
	__u8 by_kernel;		/* all to and from it takes the kernel path */
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL);
	__type(key, __be32);
	__type(value, struct local_pod);
} local4 SEC(".maps");

struct key6 {
	__be32 addr[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL);
	__type(key, struct key6);
	__type(value, struct local_pod);
} local6 SEC(".maps");

/* The host end of a pod's veth pair, by the pod's id. The kernel takes out what
 * goes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, MAX_POD_IDS);
	__type(key, __u32);
	__type(value, __u32);
} pod_devices SEC(".maps");

/* A prefix that the workers can reach now. The two MACs lie as in the inner
 * Ethernet header of a frame that goes by our VXLAN device.
 */
struct remote {
	__u32 mtu;		/* largest inner IP packet */
	__u32 tunnel;		/* ifindex of that device; 0: not to be used */
	__u8 peer_mac[6];
	__u8 own_mac[6];
};

struct lpm_key4 {
	__u32 prefix_len;
	__be32 addr;
};

struct lpm_key6 {
	__u32 prefix_len;
	__be32 addr[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_REMOTE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm_key4);
	__type(value, struct remote);
} remote4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_REMOTE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lpm_key6);
	__type(value, struct remote);
} remote6 SEC(".maps");

/* Where the other nodes' tunnel packets come from; IPv4: mapped. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VTEPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key6);
	__type(value, __u8);
} vteps SEC(".maps");

/* A worker's sign of life, one cache line each. Times are CLOCK_MONOTONIC. */
struct heartbeat {
	__u64 beat_ns;		/* by the worker, at the latest as it falls
				 * asleep; 0: not running
				 */
	__u64 asleep;		/* by the worker */
	__u64 called_ns;	/* by the programs: first frame for a sleeper */
	__u64 since_ns;		/* by the programs, too: when the first of */
	__u64 left;		/* those came that it was not called for, */
	__u64 left_ns;		/* and the last */
	__u64 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_WORKERS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct heartbeat);
} heartbeats SEC(".maps");

/* Frames on their way to a worker by the hub, one cache line each: those from a
 * pod, by its id, and after the pods those of all pods of a worker, by its number.
 * After these the same of frames from the wire for a pod.
 */
struct credit {
	__u64 produced;		/* by pod_steer and nic_steer_tc */
	__u64 consumed;		/* by the worker */
	__u64 refused;		/* by these programs: a pod's, without credit */
	__u64 quota;		/* by the worker, for each pod; 0: none */
	__u64 gone;		/* by hub_deliver: to a pod that is not there */
	__u64 held_ns;		/* by these programs: when one came that no
				 * worker takes
				 */
	__u64 pad[2];
};

#define FROM_WIRE_CREDITS (MAX_POD_IDS + MAX_WORKERS)

/* No pod's id. */
#define ALL_PODS 0

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * FROM_WIRE_CREDITS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct credit);
} credits SEC(".maps");

static __always_inline const struct config *config_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&configs, &zero);
}

#endif
