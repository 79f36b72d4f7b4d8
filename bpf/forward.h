/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the programs forward themselves, from device to device, as ip_forward()
 * would: between pods of this node, and what no worker takes between a pod and
 * our VXLAN device. Neither meets the node's routing nor its netfilter.
 */
#ifndef PODWIRE_FORWARD_H
#define PODWIRE_FORWARD_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include "claim.h"
#include "ct.h"
#include "parse.h"

/* Whether every packet that leaves for this frame fits @mtu. A super-packet is
 * judged by its segments. The workers can cut UDP's as well as TCP's, but get
 * none of them: gso_type is not to be seen here, and without it one of plain UDP
 * (SKB_GSO_UDP_L4) looks like one of a pod's own tunnel.
 */
static __always_inline enum verdict fits(struct __sk_buff *skb, void *end,
					 const struct packet *packet, __u32 mtu)
{
	struct tcphdr *tcp;

	if (!skb->gso_size)
		return packet->bytes > mtu ? VERDICT_TOO_BIG : VERDICT_CLAIMED;
	if (packet->protocol != IPPROTO_TCP)
		return VERDICT_PROTOCOL;
	tcp = packet->is6 ? (void *)(packet->ip6 + 1) :
			    (void *)(packet->ip4 + 1);
	if ((void *)(tcp + 1) > end)
		return VERDICT_TRUNCATED;
	if (skb->gso_size + packet->header + tcp->doff * 4 > mtu)
		return VERDICT_TOO_BIG;
	return VERDICT_CLAIMED;
}

/* The same; what follows a super-packet of datagrams on @account must not overtake
 * it.
 */
static __always_inline enum verdict fits_in_order(struct __sk_buff *skb,
						  void *end,
						  const struct packet *packet,
						  __u32 mtu, __u32 account)
{
	enum verdict verdict = fits(skb, end, packet, mtu);

	if (verdict == VERDICT_PROTOCOL)
		hold(account);
	return verdict;
}

/* Whether the node's stack has nothing to translate in a packet from or for @pod.
 * When the process has ended, nobody says that something has come to be
 * translated since.
 */
static __always_inline enum verdict passes_stack(struct __sk_buff *skb,
						 void *end,
						 const struct packet *packet,
						 __u16 pod,
						 const struct config *cfg)
{
	const struct context in = { .skb = skb };
	enum nat nat = cfg->nat;

	if (nat == NAT_NONE && !has_socket(pod, cfg))
		nat = NAT_LOOKUP;
	return untranslated(in, packet, end, nat);
}

/* Whether a packet from a pod is one that a worker could take, and may go by the
 * VXLAN device. Of a connection all does, both ways, or conntrack, which sees half
 * of it, would call it invalid.
 */
static __always_inline bool is_untaken(enum verdict verdict)
{
	switch (verdict) {
	case VERDICT_BULK:
	case VERDICT_STALE:
	case VERDICT_LATE:
	case VERDICT_NO_SOCKET:
		return true;
	default:
		return false;
	}
}

/* Whether a packet from the VXLAN device for @pod follows none that the stack has. */
static __always_inline enum verdict
from_wire_in_order(const struct packet *packet, const struct local_pod *pod,
		   const struct config *cfg)
{
	__u64 now_ns;

	if (packet->protocol == IPPROTO_TCP)
		return VERDICT_CLAIMED;
	now_ns = bpf_ktime_get_ns();
	if (is_behind_all(packet, now_ns))
		return VERDICT_BEHIND;
	return in_order(packet, FROM_WIRE_CREDITS + pod->id, now_ns, cfg);
}

/* From the VXLAN device. What comes merged has its headers in the first of its
 * buffers.
 */
static __always_inline enum verdict judge_tunnel(struct __sk_buff *skb,
						 struct target *to)
{
	const struct config *cfg = config_get();
	const struct remote *remote;
	enum verdict verdict;
	struct packet packet;
	struct ethhdr *eth;
	void *end;

	if (!cfg)
		return VERDICT_TRUNCATED;
	verdict = find_packet(skb, &packet, &eth, &end);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	/* to our MAC, as the device has seen */
	if (skb->pkt_type != PACKET_HOST)
		return VERDICT_INNER_MAC;
	verdict = plain_ip(&packet, skb->len - ETH_HLEN);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	to->is6 = packet.is6;
	to->local = local_by_dst(&packet);
	if (!to->local)
		return VERDICT_UNKNOWN_DESTINATION;
	if (to->local->by_kernel)
		return VERDICT_FOREIGN_TC;
	/* so do the pod's answers, by this tunnel or the other */
	remote = remote_by_src(&packet);
	if (!remote || !remote->tunnel)
		return VERDICT_UNKNOWN_SOURCE;
	verdict = fits_in_order(skb, end, &packet, cfg->pod_mtu,
				FROM_WIRE_CREDITS + to->local->id);
	if (verdict == VERDICT_CLAIMED)
		verdict = from_wire_in_order(&packet, to->local, cfg);
	if (verdict == VERDICT_CLAIMED)
		verdict = passes_stack(skb, end, &packet, to->local->id, cfg);
	return verdict == VERDICT_CLAIMED ? VERDICT_BYPASS : verdict;
}

/* Takes one from the TTL, as ip_decrease_ttl() in include/net/ip.h: the sum over
 * the header stays the same (RFC 1624), and with it that over the frame.
 */
static __always_inline long hop4(struct __sk_buff *skb)
{
	const __u32 at = ETH_HLEN + offsetof(struct iphdr, ttl);
	struct {
		__u8 ttl;
		__u8 protocol;
		__u16 check;
	} part;
	__u32 check;

	if (bpf_skb_load_bytes(skb, at, &part, sizeof(part)))
		return -1;
	part.ttl--;
	check = part.check + bpf_htons(0x0100);
	part.check = check + (check >= 0xffff);
	return bpf_skb_store_bytes(skb, at, &part, sizeof(part), 0);
}

static __always_inline long hop6(struct __sk_buff *skb)
{
	const __u32 at = ETH_HLEN + offsetof(struct ipv6hdr, hop_limit);
	__u8 limit;

	if (bpf_skb_load_bytes(skb, at, &limit, sizeof(limit)))
		return -1;
	limit--;
	return bpf_skb_store_bytes(skb, at, &limit, sizeof(limit),
				   BPF_F_RECOMPUTE_CSUM);
}

/* Makes the frame one that the node has forwarded, with the @macs of its next
 * hop and of ours. Not by direct access: the verifier would then copy the head of
 * every cloned skb that the program sees, claimed ones too.
 */
static __always_inline long forward(struct __sk_buff *skb, bool is6,
				    const __u8 *macs)
{
	if (is6 ? hop6(skb) : hop4(skb))
		return -1;
	return bpf_skb_store_bytes(skb, 0, macs, 2 * ETH_ALEN, 0);
}

/* To the pod of @to, which is of this node. Without memory: dropped, as the kernel
 * would.
 */
static __always_inline int forward_to_pod(struct __sk_buff *skb,
					  const struct target *to)
{
	if (!to->local || forward(skb, to->is6, to->local->mac))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(to->local->ifindex, 0);
}

/* To the pod's prefix of another node. */
static __always_inline int forward_to_tunnel(struct __sk_buff *skb,
					     const struct target *to)
{
	if (!to->remote || forward(skb, to->is6, to->remote->peer_mac))
		return TC_ACT_SHOT;
	return bpf_redirect(to->remote->tunnel, 0);
}

#endif
