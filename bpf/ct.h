/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Which packets the node's kernel may have to translate: those of a flow whose
 * conntrack entry says so. The kernel path does it; a worker would show the
 * client another address than the one that it talks to.
 *
 * The look-ups came with Linux 5.18 and may be in a module. They are found by
 * the type of their options, which exists where they do: asking for a kfunc by
 * its address (bpf_ksym_exists) is refused before Linux 6.4.
 */
#ifndef PODWIRE_CT_H
#define PODWIRE_CT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

/* Its size from the first; later kernels still take this much of it
 * (net/netfilter/nf_conntrack_bpf.c).
 */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

struct nf_conn {
	unsigned long status;
} __attribute__((preserve_access_index));

extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx,
					 struct bpf_sock_tuple *tuple,
					 __u32 tuple_bytes,
					 struct bpf_ct_opts *opts,
					 __u32 opts_bytes) __weak __ksym;
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *ctx,
					 struct bpf_sock_tuple *tuple,
					 __u32 tuple_bytes,
					 struct bpf_ct_opts *opts,
					 __u32 opts_bytes) __weak __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __weak __ksym;

/* What a program sees a packet in: exactly one of them. */
struct context {
	struct xdp_md *xdp;
	struct __sk_buff *skb;
};

/* The status of the entry for a tuple in the context's network namespace and
 * the default zone, in either direction; 0 if there is none: an entry has
 * IPS_CONFIRMED at least.
 */
static __always_inline unsigned long status_of(struct context in,
					       struct bpf_sock_tuple *tuple,
					       bool is6, __u8 protocol)
{
	struct bpf_ct_opts opts = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = protocol,
	};
	__u32 bytes = is6 ? sizeof(tuple->ipv6) : sizeof(tuple->ipv4);
	unsigned long status;
	struct nf_conn *ct;

	ct = in.xdp ? bpf_xdp_ct_lookup(in.xdp, tuple, bytes, &opts,
					sizeof(opts)) :
		      bpf_skb_ct_lookup(in.skb, tuple, bytes, &opts,
					sizeof(opts));
	if (!ct)
		return 0;
	status = ct->status;
	bpf_ct_release(ct);
	return status;
}

/* @src, @dst: addresses of the family. */
static __always_inline void fill(struct bpf_sock_tuple *tuple, bool is6,
				 const void *src, __be16 sport,
				 const void *dst, __be16 dport)
{
	if (is6) {
		__builtin_memcpy(tuple->ipv6.saddr, src, 16);
		__builtin_memcpy(tuple->ipv6.daddr, dst, 16);
		tuple->ipv6.sport = sport;
		tuple->ipv6.dport = dport;
	} else {
		__builtin_memcpy(&tuple->ipv4.saddr, src, 4);
		__builtin_memcpy(&tuple->ipv4.daddr, dst, 4);
		tuple->ipv4.sport = sport;
		tuple->ipv4.dport = dport;
	}
}

/* Whether a packet's flow is translated. One that conntrack does not know may
 * yet get the answers of one that it does, if that was translated to the same
 * addresses and ports: the kernel path gives it a port of its own. That is
 * looked for where a flow may begin: at TCP's SYN, and in every datagram.
 */
static __always_inline bool is_translated(struct context in,
					  const struct packet *packet,
					  const __be16 ports[2], bool begins)
{
	const bool is6 = packet->is6;
	const void *src = is6 ? (void *)&packet->ip6->saddr :
				(void *)&packet->ip4->saddr;
	const void *dst = is6 ? (void *)&packet->ip6->daddr :
				(void *)&packet->ip4->daddr;
	struct bpf_sock_tuple tuple = {};
	unsigned long status;

	fill(&tuple, is6, src, ports[0], dst, ports[1]);
	status = status_of(in, &tuple, is6, packet->protocol);
	if (!status && begins) {
		fill(&tuple, is6, dst, ports[1], src, ports[0]);
		status = status_of(in, &tuple, is6, packet->protocol);
	}
	return status & IPS_NAT_MASK;
}

/* @packet: plain, its headers before @end. An ICMP error may be about any flow,
 * and conntrack is only asked about TCP and UDP.
 */
static __always_inline enum verdict untranslated(struct context in,
						 const struct packet *packet,
						 void *end, enum nat nat)
{
	void *at = packet->is6 ? (void *)(packet->ip6 + 1) :
				 (void *)(packet->ip4 + 1);
	struct tcphdr *tcp = at;
	struct udphdr *udp = at;
	bool begins = true;

	if (nat == NAT_NONE)
		return VERDICT_CLAIMED;
	if (nat != NAT_LOOKUP || !bpf_core_type_exists(struct bpf_ct_opts))
		return VERDICT_NAT_UNKNOWN;
	if (packet->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return VERDICT_TRUNCATED;
		begins = tcp->syn && !tcp->ack;
	} else if (packet->protocol != IPPROTO_UDP) {
		return VERDICT_NAT_UNKNOWN;
	}
	/* both begin with the ports */
	if ((void *)(udp + 1) > end)
		return VERDICT_TRUNCATED;
	return is_translated(in, packet, at, begins) ? VERDICT_NATED :
						       VERDICT_CLAIMED;
}

#endif
