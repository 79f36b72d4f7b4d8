//! What the compiler made of the types under `bpf/`, for tests that the Rust side agrees.

use std::collections::HashMap;

use libbpf_rs::btf::types::{Enum, Struct};
use libbpf_rs::btf::{Btf, HasSize};

fn btf() -> Btf<'static> {
    Btf::from_path(concat!(env!("OUT_DIR"), "/steer.bpf.o")).unwrap()
}

/// The size of a struct and the offset of each member, in bytes.
pub(super) fn layout(name: &str) -> (usize, HashMap<String, usize>) {
    let btf = btf();
    let structure = btf.type_by_kind::<Struct<'_>>().find(|s| s.name().is_some_and(|n| n == name)).unwrap();
    let offset = |attr| match attr {
        libbpf_rs::btf::types::MemberAttr::Normal { offset } => usize::try_from(offset / 8).unwrap(),
        libbpf_rs::btf::types::MemberAttr::BitField { .. } => panic!("a bit field in {name}"),
    };
    let members = structure.iter().map(|m| (m.name.unwrap().to_str().unwrap().to_owned(), offset(m.attr))).collect();
    (structure.size(), members)
}

/// The enumerators of an enum whose values count from 0.
pub(super) fn enumerators(name: &str) -> Vec<String> {
    let btf = btf();
    let found = btf.type_by_kind::<Enum<'_>>().find(|e| e.name().is_some_and(|n| n == name)).unwrap();
    let members: Vec<_> = found.iter().map(|m| (m.value, m.name.unwrap().to_str().unwrap().to_owned())).collect();
    assert!(members.iter().enumerate().all(|(i, (value, _))| i64::try_from(i) == Ok(*value)));
    members.into_iter().map(|(_, name)| name).collect()
}
