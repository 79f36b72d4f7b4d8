/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What whoever traces is told of frames, as they came. While nobody does, a
 * verdict costs one load and one branch more. The other side is
 * src/steer/tap.rs; tests compare the layouts through BTF.
 */
#ifndef PODWIRE_TRACE_H
#define PODWIRE_TRACE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "verdict.h"
#include "worker.h"

/* All headers, outer and inner, and some of what they carry. */
#define TRACE_SNAP 256
#define TRACE_RING_BYTES (1 << 20)

/* The first cache line is only read while frames are traced. An order expires:
 * a reader that has ended, however it ended, leaves nothing on.
 */
struct trace {
	__u64 wanted[PROGRAM_COUNT];	/* by control: a bit for each verdict */
	__u64 until_ns;			/* by control: so long */
	__u64 pad[4];
	__u64 lost;			/* by the programs: no room for them */
	__u64 pad2[7];
};

_Static_assert(VERDICT_COUNT <= 64, "a bit for each verdict");
_Static_assert(sizeof(struct trace) == 128, "two cache lines");

/* Global, or libbpf would not make its map one that can be mapped. */
struct trace trace SEC(".data.trace");

struct trace_record {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u32 ifindex;
	__u32 length;		/* of the whole frame */
	__u32 kept;		/* of @bytes */
	__u16 program;
	__u16 verdict;
	__u8 bytes[TRACE_SNAP];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, TRACE_RING_BYTES);
} trace_ring SEC(".maps");

static __always_inline bool is_traced(enum program program,
				      enum verdict verdict)
{
	return READ_ONCE(trace.wanted[program]) >> verdict & 1;
}

/* A record to be filled and submitted, or NULL: nobody waits for a reader. Not
 * inlined, so that the object's BTF holds its types.
 */
static __noinline struct trace_record *new_record(enum program program,
						  enum verdict verdict,
						  __u32 ifindex, __u32 length)
{
	__u64 now_ns = bpf_ktime_get_ns();
	struct trace_record *record;

	if (!younger(READ_ONCE(trace.until_ns), now_ns, 0)) {
		WRITE_ONCE(trace.wanted[program], 0);
		return NULL;
	}
	record = bpf_ringbuf_reserve(&trace_ring, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&trace.lost, 1);
		return NULL;
	}
	record->time_ns = now_ns;
	record->ifindex = ifindex;
	record->length = length;
	record->kept = 0;
	record->program = program;
	record->verdict = verdict;
	return record;
}

/* How much of a frame is kept. The compiler is not to look through it: the
 * verifier would lose sight of the bounds.
 */
static __always_inline __u32 snap(__u32 length)
{
	asm volatile("" : "+r"(length));
	return length < TRACE_SNAP ? length : TRACE_SNAP;
}

/* The reader looks by itself: waking it would cost an interrupt. */
static __noinline int trace_xdp(struct xdp_md *ctx, enum verdict verdict)
{
	__u32 length = bpf_xdp_get_buff_len(ctx), kept = snap(length);
	struct trace_record *record = new_record(PROGRAM_NIC, verdict,
						 ctx->ingress_ifindex, length);

	if (!record)
		return 0;
	if (kept && !bpf_xdp_load_bytes(ctx, 0, record->bytes, kept))
		record->kept = kept;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

static __noinline int trace_skb(struct __sk_buff *skb, enum program program,
				enum verdict verdict)
{
	__u32 length = skb->len, kept = snap(length);
	struct trace_record *record = new_record(program, verdict, skb->ifindex,
						 length);

	if (!record)
		return 0;
	if (kept && !bpf_skb_load_bytes(skb, 0, record->bytes, kept))
		record->kept = kept;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Counts a verdict, and tells of it if that is wanted. Apart from what judges,
 * whose registers it would take otherwise: 5 ns of pod_steer's 70.
 */
static __noinline int conclude_xdp(struct xdp_md *ctx, enum verdict verdict)
{
	count(PROGRAM_NIC, verdict);
	if (is_traced(PROGRAM_NIC, verdict))
		trace_xdp(ctx, verdict);
	return 0;
}

static __noinline int conclude_skb(struct __sk_buff *skb, enum program program,
				   enum verdict verdict)
{
	count(program, verdict);
	if (is_traced(program, verdict))
		trace_skb(skb, program, verdict);
	return 0;
}

#endif
