// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * A load generator and its sink. `generate` is run on live frames (BPF_F_TEST_XDP_LIVE_FRAMES, kernel
 * Documentation/bpf/bpf_prog_run.rst): it makes each frame the next packet of a list and sends it out of that packet's
 * device, as fast as it is told. `count` counts what arrives, and drops it.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) value *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;
static long (*bpf_xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
static long (*bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) =
    (void *)BPF_FUNC_skb_load_bytes;

/* Words of eight bytes that a packet begins with: all headers of a VXLAN frame, rounded up. Zeros follow. */
#define WORDS 12

/* UDP destination port of all packets, in network byte order (7021), and where it is in plain and in VXLAN frames. */
#define PORT __builtin_bswap16(7021)
#define PLAIN 36
#define VXLAN 86

/* How far a generator that was kept from running may catch up, in nanoseconds: further would be a burst. */
#define GRACE 20000

struct packet {
    __u32 device;
    /* Of the frame that comes, so many bytes from the end are not the packet's. */
    __s32 surplus;
    __u64 head[WORDS];
};

/* Times in 1/1024 ns, so that rates are met. */
struct pace {
    __u64 interval;
    __u64 due;
    __u64 sent;
    __u32 next;
    __u32 packets;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 8192);
    __type(key, __u32);
    __type(value, struct packet);
} packets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct pace);
} pace SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_DEVMAP);
    __uint(max_entries, 256);
    __type(key, __u32);
    __type(value, __u32);
} devices SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} counted SEC(".maps");

/* Whether a packet is due now. */
static int is_due(struct pace *pace)
{
    __u64 now;

    if (!pace->interval)
        return 1;
    now = bpf_ktime_get_ns() << 10;
    if (now < pace->due)
        return 0;
    if (pace->due + (GRACE << 10) < now)
        pace->due = now - (GRACE << 10);
    pace->due += pace->interval;
    return 1;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
    __u64 *head = (void *)(long)ctx->data;
    void *end = (void *)(long)ctx->data_end;
    struct packet *packet;
    struct pace *now;
    __u32 key = 0;

    now = bpf_map_lookup_elem(&pace, &key);
    if (!now || !is_due(now))
        return XDP_DROP;
    key = now->next;
    now->next = key + 1 < now->packets ? key + 1 : 0;
    packet = bpf_map_lookup_elem(&packets, &key);
    if (!packet || (void *)(head + WORDS) > end)
        return XDP_ABORTED;
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        head[i] = packet->head[i];
    if (bpf_xdp_adjust_tail(ctx, -packet->surplus))
        return XDP_ABORTED;
    now->sent++;
    return bpf_redirect_map(&devices, packet->device, 0);
}

SEC("tc")
int count(struct __sk_buff *skb)
{
    __u16 plain = 0, vxlan = 0;
    __u64 *arrived;
    __u32 key = 0;

    bpf_skb_load_bytes(skb, PLAIN, &plain, sizeof(plain));
    bpf_skb_load_bytes(skb, VXLAN, &vxlan, sizeof(vxlan));
    if (plain != PORT && vxlan != PORT)
        return TC_ACT_UNSPEC;
    arrived = bpf_map_lookup_elem(&counted, &key);
    if (arrived)
        *arrived += 1;
    return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
