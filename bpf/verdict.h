/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the programs decide about a frame, and where they count it. */
#ifndef PODWIRE_VERDICT_H
#define PODWIRE_VERDICT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum program {
	PROGRAM_NIC,
	PROGRAM_POD,
	PROGRAM_TUNNEL,
	PROGRAM_COUNT,
};

/* The names, in this order, are the labels of src/steer/verdict.rs, which
 * says what each means. A test compares the two through BTF.
 */
enum verdict {
	/* the fast path */
	VERDICT_CLAIMED,
	VERDICT_LOCAL,
	VERDICT_BYPASS,
	/* dropped */
	VERDICT_SPOOF_IP,
	VERDICT_SPOOF_MAC,
	VERDICT_POD_VLAN,
	VERDICT_QUOTA,
	VERDICT_UNKNOWN_VTEP,
	VERDICT_SPOOF_WIRE,
	/* left to the kernel path */
	VERDICT_NOT_IP,
	VERDICT_VLAN,
	VERDICT_MULTI_BUFFER,
	VERDICT_TRUNCATED,
	VERDICT_MALFORMED,
	VERDICT_NOT_VXLAN,
	VERDICT_BARE,
	VERDICT_OUTER_OPTIONS,
	VERDICT_OUTER_FRAGMENT,
	VERDICT_OUTER_CHECKSUM,
	VERDICT_VXLAN_FLAGS,
	VERDICT_VXLAN_VNI,
	VERDICT_INNER_MAC,
	VERDICT_NOT_UNICAST,
	VERDICT_OPTIONS,
	VERDICT_FRAGMENT,
	VERDICT_PROTOCOL,
	VERDICT_TTL,
	VERDICT_TOO_BIG,
	VERDICT_UNKNOWN_DESTINATION,
	VERDICT_UNKNOWN_SOURCE,
	VERDICT_STALE,
	VERDICT_LATE,
	VERDICT_BEHIND,
	VERDICT_ASLEEP,
	VERDICT_NO_SOCKET,
	VERDICT_NATED,
	VERDICT_NAT_UNKNOWN,
	VERDICT_FOREIGN_TC,
	VERDICT_BULK,
	VERDICT_COUNT,
};

/* Frames by verdict; a super-packet counts once. */
struct tally {
	__u64 frames[VERDICT_COUNT];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROGRAM_COUNT);
	__type(key, __u32);
	__type(value, struct tally);
} verdicts SEC(".maps");

static __always_inline void count(enum program program, enum verdict verdict)
{
	__u32 key = program;
	struct tally *tally = bpf_map_lookup_elem(&verdicts, &key);

	if (tally && verdict < VERDICT_COUNT)
		tally->frames[verdict]++;
}

#endif
