//! Compiles the steering programs and generates their skeleton (`$OUT_DIR/steer.skel.rs`).
//! The object stays beside it (`steer.bpf.o`): tests read its type information.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    SkeletonBuilder::new()
        .source("bpf/steer.bpf.c")
        .clang_args(["-Wall", "-Wextra", "-Werror", "-mcpu=v3", "-I/usr/include/x86_64-linux-gnu"])
        .obj(out.join("steer.bpf.o"))
        .build_and_generate(out.join("steer.skel.rs"))
        .expect("bpf/steer.bpf.c compiles (clang and linux-libc-dev installed?)");
    println!("cargo::rerun-if-changed=bpf");
}
