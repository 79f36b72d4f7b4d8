/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What a plain IP packet is. The fast path carries whole TCP, UDP and ICMP
 * packets without options; what differs is left to the kernel, which has an
 * answer for it.
 */
#ifndef PODWIRE_PARSE_H
#define PODWIRE_PARSE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "verdict.h"

#define IP_DONT_FRAGMENT 0x4000

/* Next headers that are not in every libc's <linux/in.h>. */
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_ESP 50
#define NEXT_AUTH 51
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135
#define NEXT_HIP 139
#define NEXT_SHIM6 140

/* More extension headers than anybody sends. */
#define MAX_EXTENSIONS 8

/* An IP packet whose fixed header is inside the frame. */
struct packet {
	union {
		const struct iphdr *ip4;
		const struct ipv6hdr *ip6;
	};
	bool is6;	/* not a null pointer: the verifier would not believe it */
	__u8 protocol;
	__u32 header;	/* bytes of the fixed header */
	__u32 bytes;	/* of the packet, by its own header */
};

static __always_inline bool same6(const void *a, const __be32 *b)
{
	const __be32 *words = a;

	return words[0] == b[0] && words[1] == b[1] && words[2] == b[2] &&
	       words[3] == b[3];
}

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] &&
	       a[4] == b[4] && a[5] == b[5];
}

static __always_inline bool is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) ||
	       proto == bpf_htons(ETH_P_8021AD);
}

/* Finds the fixed header at @at. VERDICT_CLAIMED: nothing against it so far. */
static __always_inline enum verdict find_ip(void *at, void *end, __be16 proto,
					    struct packet *packet)
{
	struct ipv6hdr *ip6 = at;
	struct iphdr *ip4 = at;

	if (proto == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip4 + 1) > end)
			return VERDICT_TRUNCATED;
		packet->ip4 = ip4;
		packet->is6 = false;
		packet->header = sizeof(*ip4);
		packet->bytes = bpf_ntohs(ip4->tot_len);
		packet->protocol = ip4->protocol;
		return VERDICT_CLAIMED;
	}
	if (proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end)
			return VERDICT_TRUNCATED;
		packet->ip6 = ip6;
		packet->is6 = true;
		packet->header = sizeof(*ip6);
		packet->bytes = bpf_ntohs(ip6->payload_len) + sizeof(*ip6);
		packet->protocol = ip6->nexthdr;
		return VERDICT_CLAIMED;
	}
	return is_vlan(proto) ? VERDICT_VLAN : VERDICT_NOT_IP;
}

static __always_inline enum verdict plain4(const struct iphdr *ip)
{
	if (ip->version != 4 || ip->ihl < 5)
		return VERDICT_MALFORMED;
	if (ip->ihl > 5)
		return VERDICT_OPTIONS;
	if (ip->frag_off & bpf_htons((__u16)~IP_DONT_FRAGMENT))
		return VERDICT_FRAGMENT;
	switch (ip->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_ICMP:
		break;
	default:
		return VERDICT_PROTOCOL;
	}
	return ip->ttl > 1 ? VERDICT_CLAIMED : VERDICT_TTL;
}

static __always_inline enum verdict plain6(const struct ipv6hdr *ip)
{
	if (ip->version != 6)
		return VERDICT_MALFORMED;
	switch (ip->nexthdr) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_ICMPV6:
		break;
	case NEXT_FRAGMENT:
		return VERDICT_FRAGMENT;
	case NEXT_HOP_BY_HOP:
	case NEXT_ROUTING:
	case NEXT_ESP:
	case NEXT_AUTH:
	case NEXT_DESTINATION:
	case NEXT_MOBILITY:
	case NEXT_HIP:
	case NEXT_SHIM6:
		return VERDICT_OPTIONS;
	default:
		return VERDICT_PROTOCOL;
	}
	return ip->hop_limit > 1 ? VERDICT_CLAIMED : VERDICT_TTL;
}

/* Whether the packet is plain and its lengths are sane within @room bytes. */
static __always_inline enum verdict plain_ip(const struct packet *packet,
					     __u32 room)
{
	if (packet->bytes < packet->header || packet->bytes > room)
		return VERDICT_MALFORMED;
	return packet->is6 ? plain6(packet->ip6) : plain4(packet->ip4);
}

static __always_inline struct local_pod *local_by_dst(const struct packet *packet)
{
	if (packet->is6)
		return bpf_map_lookup_elem(&local6, &packet->ip6->daddr);
	return bpf_map_lookup_elem(&local4, &packet->ip4->daddr);
}

static __always_inline struct local_pod *local_by_src(const struct packet *packet)
{
	if (packet->is6)
		return bpf_map_lookup_elem(&local6, &packet->ip6->saddr);
	return bpf_map_lookup_elem(&local4, &packet->ip4->saddr);
}

static __always_inline struct remote *remote_of(const void *addr, bool is6)
{
	struct lpm_key4 key4 = { .prefix_len = 32 };
	struct lpm_key6 key6 = { .prefix_len = 128 };

	if (is6) {
		__builtin_memcpy(key6.addr, addr, sizeof(key6.addr));
		return bpf_map_lookup_elem(&remote6, &key6);
	}
	__builtin_memcpy(&key4.addr, addr, sizeof(key4.addr));
	return bpf_map_lookup_elem(&remote4, &key4);
}

static __always_inline struct remote *remote_by_dst(const struct packet *packet)
{
	if (packet->is6)
		return remote_of(&packet->ip6->daddr, true);
	return remote_of(&packet->ip4->daddr, false);
}

static __always_inline struct remote *remote_by_src(const struct packet *packet)
{
	if (packet->is6)
		return remote_of(&packet->ip6->saddr, true);
	return remote_of(&packet->ip4->saddr, false);
}

#endif
