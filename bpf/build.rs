//! Compiles the steering programs and generates their skeleton (`$OUT_DIR/steer.skel.rs`).

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("steer.skel.rs");
    SkeletonBuilder::new()
        .source("bpf/steer.bpf.c")
        .clang_args(["-Wall", "-Wextra", "-Werror", "-mcpu=v3", "-I/usr/include/x86_64-linux-gnu"])
        .build_and_generate(&out)
        .expect("bpf/steer.bpf.c compiles (clang and linux-libc-dev installed?)");
    println!("cargo::rerun-if-changed=bpf");
}
