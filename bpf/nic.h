/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Which frames from the wire are for a worker: whole VXLAN frames to our VTEP
 * (RFC 7348 section 5) around a plain IP packet for a pod of this node, from
 * where the workers take the pod's answers to; and such packets bare, as nodes
 * of the same link send them that do without the tunnel (Flannel's
 * DirectRouting, pkg/backend/vxlan/vxlan_network.go).
 */
#ifndef PODWIRE_NIC_H
#define PODWIRE_NIC_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/udp.h>

#include "bulk.h"
#include "claim.h"
#include "parse.h"

#define VXLAN_FLAG_VNI 0x08000000

#define IP_OFFSET 0x1fff

struct vxlan {
	__be32 flags;
	__be32 vni;		/* upper 24 bits; the rest is reserved */
};

#define OUTER_MAX                                                              \
	(ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct udphdr) +           \
	 sizeof(struct vxlan))

/* Where a frame begins or ends. The compiler is not to know that it comes from
 * 32 bits: short of registers it would spill as many, and the verifier refuses
 * half a pointer.
 */
static __always_inline void *pointer(__u32 from)
{
	void *at = (void *)(long)from;

	asm volatile("" : "+r"(at));
	return at;
}

/* A frame from the wire. */
struct frame {
	void *data;
	void *end;		/* of what can be read here */
	__u32 bytes;
	enum verdict apart;	/* CLAIMED: it is one packet in one piece */
};

/* What a frame holds. */
struct arrival {
	struct packet packet;
	const struct local_pod *pod;	/* who has its destination, if anybody */
	bool may_bypass;		/* if no worker takes it */
};

/* The VTEP of ours that a packet is addressed to, or NULL. */
static __always_inline const struct vtep *vtep_of(const struct packet *outer,
						  const struct config *cfg)
{
	const struct vtep *vtep = outer->is6 ? &cfg->vtep6 : &cfg->vtep4;

	if (!vtep->is_there)
		return NULL;
	if (outer->is6)
		return same6(&outer->ip6->daddr, vtep->addr) ? vtep : NULL;
	return outer->ip4->daddr == vtep->addr[3] ? vtep : NULL;
}

/* Finds the UDP header that the kernel would find in a whole packet, or in the
 * first fragment of one: without it the others come to nothing. Null: there is
 * none within the frame.
 */
static __always_inline struct udphdr *find_udp4(const struct iphdr *ip,
						void *end)
{
	struct udphdr *udp = (void *)ip + ip->ihl * 4;

	if (ip->protocol != IPPROTO_UDP || ip->ihl < 5 ||
	    ip->frag_off & bpf_htons(IP_OFFSET) || (void *)(udp + 1) > end)
		return NULL;
	return udp;
}

static __always_inline struct udphdr *find_udp6(const struct ipv6hdr *ip,
						void *end)
{
	void *at = (void *)(ip + 1);
	__u8 next = ip->nexthdr;

	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		__u8 *header = at;

		/* as long as a UDP header */
		if ((void *)(header + 8) > end)
			return NULL;
		switch (next) {
		case IPPROTO_UDP:
			return at;
		case NEXT_FRAGMENT:
			if (header[2] || header[3] & 0xf8)
				return NULL;
			at += 8;
			break;
		case NEXT_AUTH:
			at += (header[1] + 2) * 4;
			break;
		case NEXT_HOP_BY_HOP:
		case NEXT_ROUTING:
		case NEXT_DESTINATION:
			at += (header[1] + 1) * 8;
			break;
		default:
			return NULL;
		}
		next = header[0];
	}
	return NULL;
}

static __always_inline struct udphdr *find_udp(const struct packet *outer,
					       void *end)
{
	return outer->is6 ? find_udp6(outer->ip6, end) :
			    find_udp4(outer->ip4, end);
}

/* Whether no peer of ours sends tunnel packets from there. */
static __always_inline bool is_stranger(const struct packet *outer,
					const struct config *cfg)
{
	struct key6 from = {};

	if (!cfg->known_vteps_only)
		return false;
	if (outer->is6) {
		__builtin_memcpy(from.addr, &outer->ip6->saddr,
				 sizeof(from.addr));
	} else {
		from.addr[2] = bpf_htonl(0xffff);
		from.addr[3] = outer->ip4->saddr;
	}
	return !bpf_map_lookup_elem(&vteps, &from);
}

/* Whether a packet to our VTEP is of a tunnel that no peer of ours has sent. */
static __always_inline bool is_injected(const struct packet *outer, void *end,
					const struct config *cfg)
{
	struct udphdr *udp = find_udp(outer, end);

	return udp && udp->dest == cfg->port && is_stranger(outer, cfg);
}

/* Whether the outer packet is whole, plain UDP. */
static __always_inline enum verdict outer_ip(const struct packet *outer,
					     __u32 room)
{
	enum verdict verdict = plain_ip(outer, room);

	switch (verdict) {
	case VERDICT_OPTIONS:
		return VERDICT_OUTER_OPTIONS;
	case VERDICT_FRAGMENT:
		return VERDICT_OUTER_FRAGMENT;
	case VERDICT_PROTOCOL:
		return VERDICT_NOT_VXLAN;
	case VERDICT_TTL:	/* it has arrived: nobody forwards it */
	case VERDICT_CLAIMED:
		return outer->protocol == IPPROTO_UDP ? VERDICT_CLAIMED :
							VERDICT_NOT_VXLAN;
	default:
		return verdict;
	}
}

/* RFC 7348 section 5 wants reserved bits ignored; the kernel's VXLAN device
 * drops frames that have one set (drivers/net/vxlan/vxlan_core.c, vxlan_rcv),
 * so these are left for it to judge.
 */
static __always_inline enum verdict vxlan_header(const struct vxlan *vxlan,
						 const struct config *cfg)
{
	if (vxlan->flags != bpf_htonl(VXLAN_FLAG_VNI) ||
	    vxlan->vni & bpf_htonl(0xff))
		return VERDICT_VXLAN_FLAGS;
	if (vxlan->vni != bpf_htonl(cfg->vni << 8))
		return VERDICT_VXLAN_VNI;
	return VERDICT_CLAIMED;
}

/* Whether @packet, whose headers are at @at, is one that workers carry, before
 * anybody is looked up.
 */
static __always_inline enum verdict for_anybody(const struct frame *frame,
						const struct packet *packet,
						void *at,
						const struct config *cfg)
{
	__u32 room = frame->bytes - (at - frame->data);
	enum verdict verdict = plain_ip(packet, room);

	if (verdict != VERDICT_CLAIMED)
		return verdict;
	if (packet->bytes > cfg->pod_mtu)
		return VERDICT_TOO_BIG;
	verdict = is_taken(packet, cfg);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	return goes_on_in_bulk(packet, frame->end, cfg) ? VERDICT_BULK :
							  VERDICT_CLAIMED;
}

/* Whether such a packet is for a worker. */
static __always_inline enum verdict for_pod(struct arrival *arrival)
{
	const struct remote *remote;

	if (!arrival->pod)
		return VERDICT_UNKNOWN_DESTINATION;
	if (arrival->pod->by_kernel)
		return VERDICT_FOREIGN_TC;
	/* The answers would take the kernel path, whose conntrack then has to
	 * see the questions too.
	 */
	remote = remote_by_src(&arrival->packet);
	if (!remote)
		return VERDICT_UNKNOWN_SOURCE;
	arrival->may_bypass = remote->tunnel;
	return VERDICT_CLAIMED;
}

static __always_inline enum verdict inner_frame(const struct frame *frame,
						void *at,
						const struct vtep *vtep,
						const struct config *cfg,
						struct arrival *arrival)
{
	struct packet *inner = &arrival->packet;
	struct ethhdr *eth = at;
	enum verdict verdict;

	if ((void *)(eth + 1) > frame->end)
		return VERDICT_TRUNCATED;
	/* our own MAC as the source is a loop, or a peer with our MAC */
	if (!same_mac(eth->h_dest, vtep->mac) ||
	    same_mac(eth->h_source, vtep->mac) || eth->h_source[0] & 1)
		return VERDICT_INNER_MAC;
	verdict = find_ip(eth + 1, frame->end, eth->h_proto, inner);
	if (verdict == VERDICT_CLAIMED)
		verdict = for_anybody(frame, inner, eth + 1, cfg);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	arrival->pod = local_by_dst(inner);
	return for_pod(arrival);
}

/* @outer: checked by outer_ip(). */
static __always_inline enum verdict outer_udp(const struct frame *frame,
					      const struct packet *outer,
					      const struct vtep *vtep,
					      const struct config *cfg,
					      struct arrival *arrival)
{
	struct udphdr *udp = frame->data + ETH_HLEN + outer->header;
	struct vxlan *vxlan = (void *)(udp + 1);
	enum verdict verdict;

	if ((void *)(udp + 1) > frame->end)
		return VERDICT_TRUNCATED;
	if (udp->dest != cfg->port)
		return VERDICT_NOT_VXLAN;
	if (bpf_ntohs(udp->len) != outer->bytes - outer->header)
		return VERDICT_MALFORMED;
	/* refused by the kernel unless a device asks for it (RFC 6935) */
	if (outer->is6 && !udp->check)
		return VERDICT_OUTER_CHECKSUM;
	if ((void *)(vxlan + 1) > frame->end)
		return VERDICT_TRUNCATED;
	verdict = vxlan_header(vxlan, cfg);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	return inner_frame(frame, vxlan + 1, vtep, cfg, arrival);
}

/* The queue's socket is looked up before the claim: bpf_redirect_map() alone
 * would not tell a claim from a pass.
 */
static __always_inline enum verdict
claim_for_queue(struct xdp_md *ctx, void *end, const struct arrival *arrival,
		const struct config *cfg)
{
	const struct packet *inner = &arrival->packet;
	const struct context in = { .xdp = ctx };
	__u32 queue = ctx->rx_queue_index;
	__u32 *worker = bpf_map_lookup_elem(&queue_worker, &queue);
	__u64 now_ns = bpf_ktime_get_ns();
	struct heartbeat *beat;
	enum verdict verdict;

	if (!worker || !bpf_map_lookup_elem(&xsks, &queue))
		return VERDICT_NO_SOCKET;
	beat = fresh_worker(*worker, cfg, now_ns);
	if (!beat)
		return VERDICT_STALE;
	verdict = untranslated(in, inner, end, cfg->nat);
	if (verdict == VERDICT_CLAIMED)
		verdict = not_bulk(inner, end, cfg, now_ns);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	if (arrival->may_bypass && is_fast_asleep(beat, now_ns) &&
	    stays_asleep(beat, now_ns, cfg->wake_ns))
		return VERDICT_ASLEEP;
	call_worker(beat, now_ns);
	return VERDICT_CLAIMED;
}

/* A packet to @vtep. */
static __always_inline enum verdict tunnelled(const struct frame *frame,
					      const struct packet *outer,
					      const struct vtep *vtep,
					      const struct config *cfg,
					      struct arrival *arrival)
{
	enum verdict verdict;

	if (is_injected(outer, frame->end, cfg))
		return VERDICT_UNKNOWN_VTEP;
	if (frame->apart != VERDICT_CLAIMED)
		return frame->apart;
	verdict = outer_ip(outer, frame->bytes - ETH_HLEN);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	return outer_udp(frame, outer, vtep, cfg, arrival);
}

/* A packet that is not to a VTEP of ours. Taken without a tunnel where the kernel's
 * reverse path filter takes it: as with the tunnel, whoever is on the link can
 * claim any source, but none of our own.
 */
static __always_inline enum verdict bare(const struct frame *frame,
					 const struct config *cfg,
					 struct arrival *arrival)
{
	const struct packet *packet = &arrival->packet;
	struct ethhdr *eth = frame->data;
	enum verdict verdict;

	arrival->pod = local_by_dst(packet);
	/* nor what a device in promiscuous mode sees of others */
	if (!arrival->pod || (void *)(eth + 1) > frame->end ||
	    !same_mac(eth->h_dest, cfg->uplink_mac))
		return VERDICT_NOT_VXLAN;
	if (local_by_src(packet))
		return VERDICT_SPOOF_WIRE;
	if (!cfg->takes_bare)
		return VERDICT_BARE;
	if (frame->apart != VERDICT_CLAIMED)
		return frame->apart;
	verdict = for_anybody(frame, packet, eth + 1, cfg);
	if (verdict == VERDICT_CLAIMED)
		verdict = for_pod(arrival);
	arrival->may_bypass = false;
	return verdict;
}

/* Whether a frame holds what a worker may carry: @arrival, for a pod of ours. */
static __always_inline enum verdict judge_frame(const struct frame *frame,
						const struct config *cfg,
						struct arrival *arrival)
{
	struct ethhdr *eth = frame->data;
	const struct vtep *vtep;
	enum verdict verdict;
	struct packet outer;

	if ((void *)(eth + 1) > frame->end)
		return VERDICT_TRUNCATED;
	verdict = find_ip(eth + 1, frame->end, eth->h_proto, &outer);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	vtep = vtep_of(&outer, cfg);
	if (vtep) {
		verdict = tunnelled(frame, &outer, vtep, cfg, arrival);
	} else {
		arrival->packet = outer;
		verdict = bare(frame, cfg, arrival);
	}
	if (verdict == VERDICT_CLAIMED && frame->bytes > cfg->max_frame) {
		hold(FROM_WIRE_CREDITS + arrival->pod->id);
		return VERDICT_TOO_BIG;
	}
	return verdict;
}

/* XDP: the frame is in the driver, on its way to the queue's socket. */
static __always_inline enum verdict judge_xdp(struct xdp_md *ctx)
{
	const struct config *cfg = config_get();
	struct frame frame = {
		.data = pointer(ctx->data),
		.end = pointer(ctx->data_end),
		.bytes = bpf_xdp_get_buff_len(ctx),
	};
	struct arrival arrival;
	enum verdict verdict;

	if (!cfg)
		return VERDICT_TRUNCATED;
	/* a worker takes frames of one piece only */
	frame.apart = frame.bytes == (__u64)(frame.end - frame.data) ?
			      VERDICT_CLAIMED :
			      VERDICT_MULTI_BUFFER;
	verdict = judge_frame(&frame, cfg, &arrival);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	return claim_for_queue(ctx, frame.end, &arrival, cfg);
}

static __always_inline bool has_extension(const struct packet *packet)
{
	switch (packet->is6 ? packet->protocol : IPPROTO_UDP) {
	case NEXT_HOP_BY_HOP:
	case NEXT_ROUTING:
	case NEXT_FRAGMENT:
	case NEXT_AUTH:
	case NEXT_DESTINATION:
		return true;
	default:
		return false;
	}
}

/* What is wanted of a frame's headers, as far as its first ones tell. */
static __always_inline __u32 headers_of(struct __sk_buff *skb,
					const struct config *cfg)
{
	void *end = pointer(skb->data_end);
	struct ethhdr *eth = pointer(skb->data);
	struct packet outer;

	if ((void *)(eth + 1) > end ||
	    find_ip(eth + 1, end, eth->h_proto, &outer) != VERDICT_CLAIMED ||
	    !vtep_of(&outer, cfg))
		return 0;
	/* extension headers must not hide what is injected */
	return cfg->known_vteps_only && has_extension(&outer) ?
		       skb->len :
		       OUTER_MAX + HEADERS_MAX;
}

/* One super-packet: TCP's moves much. */
static __always_inline enum verdict judge_super(const struct packet *packet)
{
	const struct local_pod *pod;

	if (packet->protocol == IPPROTO_TCP)
		return VERDICT_BULK;
	pod = local_by_dst(packet);
	if (pod)
		hold(FROM_WIRE_CREDITS + pod->id);
	return VERDICT_MULTI_BUFFER;
}

/* What the kernel has merged, or a sender has not cut, as far as its headers are in
 * the linear part. Nobody brings them there: of a list of buffers those would be
 * the next one's.
 */
static __always_inline enum verdict judge_merged(const struct frame *frame,
						 const struct config *cfg)
{
	struct ethhdr *eth = frame->data;
	struct packet packet;
	struct vxlan *vxlan;
	struct udphdr *udp;

	if ((void *)(eth + 1) > frame->end ||
	    find_ip(eth + 1, frame->end, eth->h_proto, &packet) !=
		    VERDICT_CLAIMED)
		return VERDICT_TRUNCATED;
	if (!vtep_of(&packet, cfg))
		return judge_super(&packet);
	udp = find_udp(&packet, frame->end);
	if (!udp && is_stranger(&packet, cfg) &&
	    (packet.protocol == IPPROTO_UDP || has_extension(&packet)))
		return VERDICT_UNKNOWN_VTEP;
	if (!udp || udp->dest != cfg->port)
		return VERDICT_NOT_VXLAN;
	vxlan = (void *)(udp + 1);
	eth = (void *)(vxlan + 1);
	if ((void *)(vxlan + 1) <= frame->end &&
	    vxlan->vni != bpf_htonl(cfg->vni << 8))
		return VERDICT_VXLAN_VNI;
	/* one packet in one tunnel, of any length if its header has none (BIG
	 * TCP), or several in tunnels of their own
	 */
	if ((void *)(eth + 1) <= frame->end &&
	    find_ip(eth + 1, frame->end, eth->h_proto, &packet) ==
		    VERDICT_CLAIMED &&
	    (packet.bytes <= packet.header ||
	     (void *)(eth + 1) - frame->data + packet.bytes >= frame->bytes))
		return judge_super(&packet);
	hold(FROM_WIRE_CREDITS + ALL_PODS);
	return VERDICT_MULTI_BUFFER;
}

/* tc: the kernel has received the frame, and merged with others what it merges.
 * Workers get it by the hub, as they get what pods send.
 */
static __always_inline enum verdict judge_skb(struct __sk_buff *skb,
					      struct target *to)
{
	const struct config *cfg = config_get();
	struct arrival arrival;
	enum verdict verdict;
	struct frame frame;

	if (!cfg)
		return VERDICT_TRUNCATED;
	if (skb->vlan_present)
		return VERDICT_VLAN;
	if (!skb->gso_size && skb->data_end - skb->data < skb->len) {
		pull_headers(skb, HEADERS_MAX);
		pull_headers(skb, headers_of(skb, cfg));
	}
	frame.data = pointer(skb->data);
	frame.end = pointer(skb->data_end);
	frame.bytes = skb->len;
	frame.apart = skb->gso_size ? VERDICT_MULTI_BUFFER : VERDICT_CLAIMED;
	verdict = judge_frame(&frame, cfg, &arrival);
	if (verdict == VERDICT_MULTI_BUFFER)
		return judge_merged(&frame, cfg);
	if (verdict != VERDICT_CLAIMED)
		return verdict;
	to->pod = arrival.pod->id;
	to->may_bypass = arrival.may_bypass;
	to->now_ns = bpf_ktime_get_ns();
	if (is_behind_all(&arrival.packet, to->now_ns))
		return VERDICT_BEHIND;
	return claim_for_pod(skb, frame.end, &arrival.packet, FROM_WIRE_CREDITS,
			     cfg, to);
}

#endif
