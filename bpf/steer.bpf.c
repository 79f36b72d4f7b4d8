// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The programs that put the data plane on top of the kernel path. What they do
 * not claim goes on as if they were not there.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "claim.h"
#include "deliver.h"
#include "forward.h"
#include "maps.h"
#include "nic.h"
#include "pod.h"
#include "trace.h"
#include "verdict.h"

/* Hands a frame to the worker of the pod whose it is. */
static __always_inline int to_hub(struct __sk_buff *skb,
				  const struct target *to, __u16 tag)
{
	/* so that the ring does not read a clock for it */
	skb->tstamp = to->now_ns;
	/* cannot fail: the frame has no tag yet */
	bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), to->pod | tag);
	return bpf_redirect(to->hub, BPF_F_INGRESS);
}

/* On the uplink. "frags", because a program without it makes drivers refuse or
 * cap large MTUs, and generic XDP copy every nonlinear frame into one piece.
 */
SEC("xdp.frags")
int nic_steer(struct xdp_md *ctx)
{
	enum verdict verdict = judge_xdp(ctx);

	conclude_xdp(ctx, verdict);
	switch (verdict) {
	case VERDICT_CLAIMED:
		return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	case VERDICT_UNKNOWN_VTEP:
	case VERDICT_SPOOF_WIRE:
		return XDP_DROP;
	default:
		return XDP_PASS;
	}
}

/* On the uplink, at ingress, where there is no XDP. */
SEC("tcx/ingress")
int nic_steer_tc(struct __sk_buff *skb)
{
	struct target to = {};
	enum verdict verdict = judge_skb(skb, &to);

	conclude_skb(skb, PROGRAM_NIC, verdict);
	switch (verdict) {
	case VERDICT_CLAIMED:
		return to_hub(skb, &to, TAG_FROM_WIRE);
	case VERDICT_UNKNOWN_VTEP:
	case VERDICT_SPOOF_WIRE:
	case VERDICT_QUOTA:
		return TC_ACT_SHOT;
	default:
		return TC_ACT_UNSPEC;
	}
}

/* On the host end of each pod's veth pair, at ingress. */
SEC("tcx/ingress")
int pod_steer(struct __sk_buff *skb)
{
	struct target to = {};
	enum verdict verdict = judge_pod(skb, &to);

	conclude_skb(skb, PROGRAM_POD, verdict);
	switch (verdict) {
	case VERDICT_CLAIMED:
		return to_hub(skb, &to, 0);
	case VERDICT_LOCAL:
		return forward_to_pod(skb, &to);
	case VERDICT_BYPASS:
		return forward_to_tunnel(skb, &to);
	case VERDICT_SPOOF_IP:
	case VERDICT_SPOOF_MAC:
	case VERDICT_POD_VLAN:
	case VERDICT_QUOTA:
		return TC_ACT_SHOT;
	default:
		/* other programs on the device have their say */
		return TC_ACT_UNSPEC;
	}
}

/* On each VXLAN device of ours, at ingress: what has come by the kernel path. */
SEC("tcx/ingress")
int tunnel_steer(struct __sk_buff *skb)
{
	struct target to = {};
	enum verdict verdict = judge_tunnel(skb, &to);

	conclude_skb(skb, PROGRAM_TUNNEL, verdict);
	return verdict == VERDICT_BYPASS ? forward_to_pod(skb, &to) :
					   TC_ACT_UNSPEC;
}

/* On the hub, at ingress: the workers' rings have had their copy. */
SEC("tcx/ingress")
int hub_drop(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_SHOT;
}

/* On the hub's far end, at ingress: packets from workers to pods. The device is
 * in the pod's namespace before anything else sees the packet.
 */
SEC("tcx/ingress")
int hub_deliver(struct __sk_buff *skb)
{
	__u32 device = deliver(skb);

	return device ? bpf_redirect_peer(device, 0) : TC_ACT_SHOT;
}

/* Spreads the hub's frames over the workers' rings: a pod stays with a worker,
 * whose heartbeat pod_steer has looked at, also when it was claimed before the
 * workers were told to stop: they take all that is theirs.
 */
SEC("socket")
int hub_fanout(struct __sk_buff *skb)
{
	const struct config *cfg = config_get();

	if (!cfg || !cfg->rings)
		return 0;
	return (skb->vlan_tci & 0xfff) % cfg->rings;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
