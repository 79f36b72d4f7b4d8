/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What goes to a worker by way of the hub: the frames of its pods, and for them
 * where the kernel has received them. A VLAN tag says whose a frame is.
 */
#ifndef PODWIRE_CLAIM_H
#define PODWIRE_CLAIM_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/tcp.h>

#include "bulk.h"
#include "ct.h"
#include "parse.h"
#include "worker.h"

/* All that is read of a packet: Ethernet, IPv6 and fixed TCP header. */
#define HEADERS_MAX (ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr))

/* In the tag: the frame comes from the wire, for the pod. src/packet/ring.rs
 * looks for it.
 */
#define TAG_FROM_WIRE 0x2000

/* What a verdict asks for. */
struct target {
	const struct local_pod *local;	/* the receiver, if it is of this node */
	const struct remote *remote;	/* the receiver's prefix otherwise */
	bool is6;			/* VERDICT_LOCAL, VERDICT_BYPASS */
	bool by_kernel;			/* all that the sender sends */
	bool may_bypass;		/* what no worker takes */
	__u16 pod;			/* VERDICT_CLAIMED: whose frame it is */
	__u32 hub;			/* VERDICT_CLAIMED: ifindex */
	__u64 now_ns;			/* set by whoever claims */
};

/* Brings the headers into the linear part if they are not in it. Not done when
 * they are: pulling copies the head of a cloned skb, as TCP's are.
 */
static __always_inline void pull_headers(struct __sk_buff *skb, __u32 want)
{
	__u32 linear = skb->data_end - skb->data;

	if (want > skb->len)
		want = skb->len;
	if (linear < want)
		bpf_skb_pull_data(skb, want);
}

/* Finds the IP packet of a frame at tc, whose headers are before @end then.
 * VERDICT_VLAN: it is tagged, in the frame or beside it.
 */
static __always_inline enum verdict find_packet(struct __sk_buff *skb,
						struct packet *packet,
						struct ethhdr **eth, void **end)
{
	pull_headers(skb, HEADERS_MAX);
	*end = (void *)(long)skb->data_end;
	*eth = (void *)(long)skb->data;
	if ((void *)(*eth + 1) > *end)
		return VERDICT_TRUNCATED;
	if (skb->vlan_present)
		return VERDICT_VLAN;
	return find_ip(*eth + 1, *end, (*eth)->h_proto, packet);
}

/* Whether a pod's worker has its socket. A worker serves the queue of its own
 * number. The kernel takes the socket out when the process ends, before its
 * heartbeat is stale.
 */
static __always_inline bool has_socket(__u16 pod, const struct config *cfg)
{
	__u32 worker;

	if (!cfg->workers)
		return false;
	worker = pod % cfg->workers;
	return bpf_map_lookup_elem(&xsks, &worker);
}

/* Whether workers take such packets at all. TCP is the kernel's both ways, or none
 * of it: its conntrack calls a connection invalid of which it knows half.
 */
static __always_inline enum verdict is_taken(const struct packet *packet,
					     const struct config *cfg)
{
	return cfg->leaves_tcp && packet->protocol == IPPROTO_TCP ?
		       VERDICT_BULK :
		       VERDICT_CLAIMED;
}

/* Whether a worker takes a packet of this length, and no packet is on its way that
 * this one could overtake. A connection of TCP takes one way, whatever else does, and
 * so do pings, or conntrack would call answers invalid whose questions it missed.
 */
static __always_inline enum verdict in_order(const struct packet *packet,
					     __u32 account, __u64 now_ns,
					     const struct config *cfg)
{
	const bool fits = packet->bytes <= cfg->max_packet;

	if (packet->protocol == IPPROTO_TCP)
		return VERDICT_CLAIMED;
	if (packet->protocol != IPPROTO_UDP)
		return fits ? VERDICT_CLAIMED : VERDICT_TOO_BIG;
	if (!fits) {
		hold(account);
		return VERDICT_TOO_BIG;
	}
	return is_held(account, now_ns) ? VERDICT_BEHIND : VERDICT_CLAIMED;
}

/* Whether a packet from the wire is a datagram that comes so soon after merged ones
 * of which nobody knows whose they are.
 */
static __always_inline bool is_behind_all(const struct packet *packet,
					  __u64 now_ns)
{
	return packet->protocol == IPPROTO_UDP &&
	       is_held(FROM_WIRE_CREDITS + ALL_PODS, now_ns);
}

/* @packet, from the pod of @to or for it, for the pod's worker by way of the hub;
 * @way: where the credits of such packets begin. What the worker is not woken for
 * must not overtake what it was sent before.
 */
static __always_inline enum verdict claim_for_pod(struct __sk_buff *skb,
						  void *end,
						  const struct packet *packet,
						  __u32 way,
						  const struct config *cfg,
						  struct target *to)
{
	const struct context in = { .skb = skb };
	__u64 now_ns = to->now_ns;
	struct heartbeat *beat;
	enum verdict verdict;
	__u32 worker;

	to->hub = cfg->hub;
	verdict = is_taken(packet, cfg);
	if (verdict == VERDICT_CLAIMED)
		verdict = in_order(packet, way + to->pod, now_ns, cfg);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	if (!cfg->workers)
		return VERDICT_STALE;
	worker = to->pod % cfg->workers;
	if (!has_socket(to->pod, cfg))
		return VERDICT_NO_SOCKET;
	beat = fresh_worker(worker, cfg, now_ns);
	if (!beat)
		return VERDICT_STALE;
	verdict = untranslated(in, packet, end, cfg->nat);
	if (verdict == VERDICT_CLAIMED)
		verdict = not_bulk(packet, end, cfg, now_ns);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	if (to->may_bypass && is_settled(way + to->pod) &&
	    stays_asleep(beat, now_ns, cfg->wake_ns))
		return VERDICT_ASLEEP;
	/* A pod that sends, or is sent, more than its share of what its worker can
	 * take loses the rest: the kernel path would reorder the flow. But if the
	 * worker takes nothing at the moment, that is not the pod's fault.
	 */
	if (!take_credit(way + to->pod, way + MAX_POD_IDS + worker, cfg->slots))
		return is_at_work(beat, now_ns, cfg->stale_ns) ? VERDICT_QUOTA :
								 VERDICT_LATE;
	call_worker(beat, now_ns);
	return VERDICT_CLAIMED;
}

#endif
