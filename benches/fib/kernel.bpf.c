// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The kernel's longest-prefix match (BPF_MAP_TYPE_LPM_TRIE) for the bench `fib`: each run looks the next
 * stretch of the trace up, after the last one the first.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define TRACE 262144
#define STRETCH 16384

struct key4 {
	__u32 length;
	__u8 address[4];
};

struct key6 {
	__u32 length;
	__u8 address[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key4);
	__type(value, __u32);
} prefixes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key6);
	__type(value, __u32);
} prefixes6 SEC(".maps");

/* In network byte order; IPv4 in the first four bytes. */
__u8 trace[TRACE][16] SEC(".data.trace");

/* Of the values that were found. */
__u64 sum SEC(".data.sum");

/* Where the next stretch begins. */
__u32 next SEC(".data.next");

static long find4(__u32 index, __u64 *found)
{
	struct key4 key = { .length = 32 };
	__u32 *value;

	__builtin_memcpy(key.address, trace[(next + index) & (TRACE - 1)], 4);
	value = bpf_map_lookup_elem(&prefixes4, &key);
	if (value)
		*found += *value;
	return 0;
}

static long find6(__u32 index, __u64 *found)
{
	struct key6 key = { .length = 128 };
	__u32 *value;

	__builtin_memcpy(key.address, trace[(next + index) & (TRACE - 1)], 16);
	value = bpf_map_lookup_elem(&prefixes6, &key);
	if (value)
		*found += *value;
	return 0;
}

SEC("socket")
int find_some4(void *ctx)
{
	__u64 found = 0;

	bpf_loop(STRETCH, find4, &found, 0);
	next += STRETCH;
	sum += found;
	return 0;
}

SEC("socket")
int find_some6(void *ctx)
{
	__u64 found = 0;

	bpf_loop(STRETCH, find6, &found, 0);
	next += STRETCH;
	sum += found;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
