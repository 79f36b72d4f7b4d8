/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What workers put together for pods and the kernel has taken apart again: each
 * packet is a datagram behind headers that are worth nothing here. The other
 * side is src/offload/pod_train.rs.
 */
#ifndef PODWIRE_DELIVER_H
#define PODWIRE_DELIVER_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "parse.h"

/* The Ethernet header for the pod, with its id where the protocol was, and the
 * packet's header.
 */
struct delivery {
	__u8 macs[2 * ETH_ALEN];
	__be16 pod;
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	};
} __attribute__((packed));

/* Whether the packet's destination is still that pod's, as the worker has seen it:
 * the id may have become another pod's while the packet was on its way.
 */
static __always_inline bool is_for(__u32 pod, const struct delivery *delivery,
				   bool is6)
{
	const struct packet packet = {
		.ip4 = (void *)&delivery->ip4,
		.is6 = is6,
	};
	const struct local_pod *local = local_by_dst(&packet);

	return local && local->id == pod;
}

static __always_inline void count_gone(__u32 pod)
{
	struct credit *credit = bpf_map_lookup_elem(&credits, &pod);

	if (credit && pod < MAX_POD_IDS)
		__sync_fetch_and_add(&credit->gone, 1);
}

/* Makes the frame the one that the pod is to get; false if that cannot be. */
static __always_inline bool unpack(struct __sk_buff *skb, bool is6, __u32 outer,
				   const struct delivery *delivery)
{
	const __u32 start = ETH_HLEN + outer + ETH_HLEN;
	const __u32 end = start +
			  (is6 ? sizeof(struct ipv6hdr) +
					 bpf_ntohs(delivery->ip6.payload_len) :
				 bpf_ntohs(delivery->ip4.tot_len));

	if (skb->len < end)
		return false;
	/* all datagrams of a super-packet are as long as the longest */
	if (skb->len > end && bpf_skb_change_tail(skb, end, 0))
		return false;
	return !bpf_skb_adjust_room(skb, -(__s32)(outer + ETH_HLEN),
				    BPF_ADJ_ROOM_MAC, 0) &&
	       !bpf_skb_store_bytes(skb, 0, delivery->macs,
				    sizeof(delivery->macs), 0) &&
	       !bpf_skb_change_type(skb, PACKET_HOST);
}

/* The device to redirect the unpacked frame to, or 0. */
static __always_inline __u32 deliver(struct __sk_buff *skb)
{
	const bool is6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	const __u32 header = is6 ? sizeof(struct ipv6hdr) :
				   sizeof(struct iphdr);
	const __u32 outer = sizeof(struct udphdr) + header;
	struct delivery delivery = {};
	const __u32 *device;
	__u32 pod;

	if (!is6 && skb->protocol != bpf_htons(ETH_P_IP))
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + outer, &delivery,
			       ETH_HLEN + header))
		return 0;
	pod = bpf_ntohs(delivery.pod);
	device = bpf_map_lookup_elem(&pod_devices, &pod);
	if (device && is_for(pod, &delivery, is6) &&
	    unpack(skb, is6, outer, &delivery))
		return *device;
	count_gone(pod);
	return 0;
}

#endif
