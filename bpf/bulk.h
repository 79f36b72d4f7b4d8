/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Which TCP connections move much. Where AF_XDP copies, the kernel path carries
 * them better: there no byte is copied between the pod's socket and the driver,
 * and what it cuts or merges it does not copy either.
 */
#ifndef PODWIRE_BULK_H
#define PODWIRE_BULK_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

#define MAX_BULK 16384

/* A connection that sent no full packet for this long (ns) begins anew. None of
 * its packets is then on its way any more that others could overtake.
 */
#define BULK_PAUSE_NS 1000000000

struct endpoint {
	__be32 addr[4];		/* IPv4: the first word */
	__be16 port;
	__u16 pad;
};

/* Both directions are one connection, so that both take one path: the end that
 * compares lower comes first.
 */
struct connection {
	struct endpoint low;
	struct endpoint high;
};

struct pace {
	__u64 last_ns;		/* of the last full packet */
	__u64 bytes;		/* in full packets */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_BULK);
	__type(key, struct connection);
	__type(value, struct pace);
} paces SEC(".maps");

static __always_inline bool is_lower(const struct endpoint *a,
				     const struct endpoint *b)
{
	for (int i = 0; i < 4; i++)
		if (a->addr[i] != b->addr[i])
			return a->addr[i] < b->addr[i];
	return a->port < b->port;
}

/* The connection of a TCP packet, which is plain; false: it ends before its ports. */
static __always_inline bool connection_of(const struct packet *packet,
					  void *end,
					  struct connection *connection)
{
	/* TCP's header begins as UDP's does */
	struct udphdr *ports = packet->is6 ? (void *)(packet->ip6 + 1) :
					     (void *)(packet->ip4 + 1);
	struct endpoint src = {};
	struct endpoint dst = {};

	if ((void *)(ports + 1) > end)
		return false;
	src.port = ports->source;
	dst.port = ports->dest;
	if (packet->is6) {
		__builtin_memcpy(src.addr, &packet->ip6->saddr, 16);
		__builtin_memcpy(dst.addr, &packet->ip6->daddr, 16);
	} else {
		src.addr[0] = packet->ip4->saddr;
		dst.addr[0] = packet->ip4->daddr;
	}
	if (is_lower(&src, &dst)) {
		connection->low = src;
		connection->high = dst;
	} else {
		connection->low = dst;
		connection->high = src;
	}
	return true;
}

/* Packets of at least 3/4 of @mtu are full: super-packets, and segments of one. */
static __always_inline bool is_full(__u32 bytes, __u32 mtu)
{
	return bytes * 4ULL >= mtu * 3ULL;
}

/* Counts a packet that comes at @now_ns, and whether its connection has moved
 * @limit bytes by now. CPUs that race may lose some of the count.
 */
static __always_inline bool moves_much(const struct connection *connection,
				       __u32 bytes, __u32 mtu, __u64 limit,
				       __u64 now_ns)
{
	const bool full = is_full(bytes, mtu);
	struct pace first = { .last_ns = now_ns, .bytes = bytes };
	struct pace *pace = bpf_map_lookup_elem(&paces, connection);

	if (!pace) {
		if (full)
			bpf_map_update_elem(&paces, connection, &first, BPF_ANY);
		return false;
	}
	if ((__s64)(now_ns - pace->last_ns) >= BULK_PAUSE_NS)
		pace->bytes = 0;
	if (full) {
		pace->bytes += bytes;
		pace->last_ns = now_ns;
	}
	return pace->bytes >= limit;
}

/* Whether a connection is known to move much, and its full packet was counted: to
 * be asked before anything else, as that is what most frames from the wire are.
 * The clock may be some milliseconds behind.
 */
static __always_inline bool goes_on_in_bulk(const struct packet *packet,
					    void *end,
					    const struct config *cfg)
{
	struct connection connection = {};
	struct pace *pace;
	__u64 now_ns;

	if (!cfg->bulk_bytes || packet->protocol != IPPROTO_TCP ||
	    !is_full(packet->bytes, cfg->pod_mtu) ||
	    !connection_of(packet, end, &connection))
		return false;
	pace = bpf_map_lookup_elem(&paces, &connection);
	if (!pace || pace->bytes < cfg->bulk_bytes)
		return false;
	now_ns = bpf_ktime_get_coarse_ns();
	if ((__s64)(now_ns - pace->last_ns) >= BULK_PAUSE_NS)
		return false;
	pace->bytes += packet->bytes;
	pace->last_ns = now_ns;
	return true;
}

/* @packet: plain, its headers before @end. */
static __always_inline enum verdict not_bulk(const struct packet *packet,
					     void *end,
					     const struct config *cfg,
					     __u64 now_ns)
{
	struct connection connection = {};

	if (!cfg->bulk_bytes || packet->protocol != IPPROTO_TCP)
		return VERDICT_CLAIMED;
	if (!connection_of(packet, end, &connection))
		return VERDICT_TRUNCATED;
	return moves_much(&connection, packet->bytes, cfg->pod_mtu,
			  cfg->bulk_bytes, now_ns) ?
		       VERDICT_BULK :
		       VERDICT_CLAIMED;
}

#endif
