/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Where frames from a pod go: to a pod of this node inside the kernel, to a
 * worker by way of the hub, or up the kernel path.
 */
#ifndef PODWIRE_POD_H
#define PODWIRE_POD_H

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include "claim.h"
#include "forward.h"
#include "parse.h"

/* Neighbour discovery and the like: the link's own traffic (RFC 4291). */
static __always_inline bool from_link(const struct packet *packet)
{
	const __be32 *src;

	if (!packet->is6)
		return false;
	src = packet->ip6->saddr.in6_u.u6_addr32;
	return (src[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       !(src[0] | src[1] | src[2] | src[3]);
}

/* Multicast, broadcast, link-local, loopback and unspecified. */
static __always_inline bool to_unicast(const struct packet *packet)
{
	const __be32 *dst;
	__u32 addr;

	if (!packet->is6) {
		addr = bpf_ntohl(packet->ip4->daddr);
		return addr < 0xe0000000 && addr >> 24 != 0 &&
		       addr >> 24 != 127 && addr >> 16 != 0xa9fe;
	}
	dst = packet->ip6->daddr.in6_u.u6_addr32;
	addr = bpf_ntohl(dst[0]);
	return addr >> 24 != 0xff && addr >> 22 != 0xfe800000 >> 22 &&
	       (addr | dst[1] | dst[2] || bpf_ntohl(dst[3]) > 1);
}

/* For a pod of this node. */
static __always_inline enum verdict to_local(struct __sk_buff *skb, void *end,
					     const struct packet *packet,
					     const struct config *cfg,
					     const struct target *to)
{
	enum verdict verdict;

	/* to itself: nothing that a pod's own stack lets out */
	if (to->local->ifindex == skb->ifindex)
		return VERDICT_UNKNOWN_DESTINATION;
	if (to->local->by_kernel)
		return VERDICT_FOREIGN_TC;
	verdict = fits(skb, end, packet, cfg->pod_mtu);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	verdict = passes_stack(skb, end, packet, to->pod, cfg);
	return verdict == VERDICT_CLAIMED ? VERDICT_LOCAL : verdict;
}

/* A plain packet that its pod may send: where to? */
static __always_inline enum verdict route(struct __sk_buff *skb, void *end,
					  const struct packet *packet,
					  const struct config *cfg,
					  struct target *to)
{
	enum verdict verdict;

	if (to->by_kernel)
		return VERDICT_FOREIGN_TC;
	to->is6 = packet->is6;
	to->local = local_by_dst(packet);
	if (to->local)
		return to_local(skb, end, packet, cfg, to);
	to->remote = remote_by_dst(packet);
	if (!to->remote)
		return VERDICT_UNKNOWN_DESTINATION;
	verdict = fits_in_order(skb, end, packet, to->remote->mtu, to->pod);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	to->may_bypass = to->remote->tunnel;
	to->now_ns = bpf_ktime_get_ns();
	verdict = claim_for_pod(skb, end, packet, 0, cfg, to);
	/* which may bypass, and has nothing to translate */
	if (verdict == VERDICT_ASLEEP)
		return VERDICT_BYPASS;
	if (!to->may_bypass || !is_untaken(verdict))
		return verdict;
	verdict = passes_stack(skb, end, packet, to->pod, cfg);
	return verdict == VERDICT_CLAIMED ? VERDICT_BYPASS : verdict;
}

/* The sender's address and MAC must be those of the pod behind the device. */
static __always_inline enum verdict is_honest(struct __sk_buff *skb,
					      const struct ethhdr *eth,
					      const struct packet *packet,
					      struct target *to)
{
	const struct local_pod *pod = local_by_src(packet);

	if (!pod || pod->ifindex != skb->ifindex)
		return VERDICT_SPOOF_IP;
	if (!same_mac(eth->h_source, pod->mac))
		return VERDICT_SPOOF_MAC;
	to->pod = pod->id;
	to->by_kernel = pod->by_kernel;
	return VERDICT_CLAIMED;
}

static __always_inline enum verdict judge_pod(struct __sk_buff *skb,
					      struct target *to)
{
	const struct config *cfg = config_get();
	enum verdict verdict;
	struct packet packet;
	struct ethhdr *eth;
	void *end;

	if (!cfg)
		return VERDICT_TRUNCATED;
	verdict = find_packet(skb, &packet, &eth, &end);
	/* A tag would keep the addresses from is_honest(), but not from the
	 * stack, which believes a tag of VLAN 0 to be none
	 * (__netif_receive_skb_core() in net/core/dev.c). No host end has a
	 * VLAN device, so nobody is waiting for the others.
	 */
	if (verdict == VERDICT_VLAN)
		return VERDICT_POD_VLAN;
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	if (from_link(&packet))
		return VERDICT_NOT_UNICAST;
	verdict = is_honest(skb, eth, &packet, to);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	if (!to_unicast(&packet))
		return VERDICT_NOT_UNICAST;
	verdict = plain_ip(&packet, skb->len - ETH_HLEN);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	/* bytes after the packet would end up in a super-packet's last segment */
	if (packet.bytes != skb->len - ETH_HLEN)
		return VERDICT_MALFORMED;
	return route(skb, end, &packet, cfg, to);
}

#endif
