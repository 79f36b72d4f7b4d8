//! Whether the programs can ask conntrack which flows are translated.

use std::path::Path;
use std::sync::OnceLock;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Struct;

/// The options of the look-ups: where this type exists, they do (`net/netfilter/nf_conntrack_bpf.c`).
const OPTIONS: &str = "bpf_ct_opts";

/// Where the kernel shows the types of conntrack, when that is a module and loaded.
const MODULE: &str = "/sys/kernel/btf/nf_conntrack";

/// What the programs do about flows that the node translates, which must take the kernel path in both directions:
/// `enum nat` of `bpf/maps.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum NatCheck {
    /// Nothing is translated.
    #[default]
    None,
    /// Look each flow up in conntrack. Programs that cannot do as for `Kernel`.
    Lookup,
    /// Leave everything to the kernel path.
    Kernel,
}

/// Whether programs loaded now can ask conntrack: Linux 5.18 or later, built with BTF, and conntrack loaded.
pub fn knows_conntrack() -> bool {
    static BUILT_IN: OnceLock<bool> = OnceLock::new();
    let built_in = || Btf::from_vmlinux().is_ok_and(|btf| btf.type_by_name::<Struct<'_>>(OPTIONS).is_some());
    *BUILT_IN.get_or_init(built_in) || Path::new(MODULE).exists()
}
