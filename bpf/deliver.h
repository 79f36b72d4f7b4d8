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

/* The Ethernet header for the pod, with its id where the protocol was, and the
 * head of the packet as far as its length.
 */
struct delivery {
	__u8 macs[2 * ETH_ALEN];
	__be16 pod;
	union {
		struct {
			__u8 skipped[2];
			__be16 total_len;
		} ip4;
		struct {
			__u8 skipped[4];
			__be16 payload_len;
		} ip6;
	};
};

_Static_assert(sizeof(struct delivery) == ETH_HLEN + 6, "no padding");

/* The host end of a pod's veth pair, or NULL, which is counted. */
static __always_inline const __u32 *device_of(__u32 pod)
{
	const __u32 *device = bpf_map_lookup_elem(&pod_devices, &pod);
	struct credit *credit;

	if (device)
		return device;
	credit = bpf_map_lookup_elem(&credits, &pod);
	if (credit && pod < MAX_POD_IDS)
		__sync_fetch_and_add(&credit->gone, 1);
	return NULL;
}

/* Makes the frame the one that its pod is to get; the device to redirect it to,
 * or 0.
 */
static __always_inline __u32 deliver(struct __sk_buff *skb)
{
	const bool is6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	const __u32 outer = sizeof(struct udphdr) +
			    (is6 ? sizeof(struct ipv6hdr) :
				   sizeof(struct iphdr));
	const __u32 start = ETH_HLEN + outer + ETH_HLEN;
	struct delivery delivery;
	const __u32 *device;
	__u32 end;

	if (!is6 && skb->protocol != bpf_htons(ETH_P_IP))
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + outer, &delivery,
			       sizeof(delivery)))
		return 0;
	end = start + (is6 ? sizeof(struct ipv6hdr) +
				     bpf_ntohs(delivery.ip6.payload_len) :
			     bpf_ntohs(delivery.ip4.total_len));
	device = device_of(bpf_ntohs(delivery.pod));
	if (!device || skb->len < end)
		return 0;
	/* all datagrams of a super-packet are as long as the longest */
	if (skb->len > end && bpf_skb_change_tail(skb, end, 0))
		return 0;
	if (bpf_skb_adjust_room(skb, -(__s32)(outer + ETH_HLEN),
				BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(skb, 0, delivery.macs, sizeof(delivery.macs),
				0) ||
	    bpf_skb_change_type(skb, PACKET_HOST))
		return 0;
	return *device;
}

#endif
