# shellcheck shell=bash
# Sourced by the scripts beside it: what they need on a fresh Debian 12. Leaves them at the root of the tree.

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# Debian packages: what compiling takes, and what nodes and pods in network namespaces are made of.
needed=(
    clang gcc make pkg-config libc6-dev linux-libc-dev libelf-dev zlib1g-dev protobuf-compiler
    iproute2 iputils-ping iperf3 tcpdump ethtool traceroute util-linux procps
    nftables conntrack iptables containernetworking-plugins systemd
)

# Container runtimes that tests start by hand, with root, state and sockets of their own.
# shellcheck disable=SC2034
runtimes=(containerd busybox-static podman conmon runc)

# What scrapes and judges metrics, started by hand too.
# shellcheck disable=SC2034
monitoring=(prometheus)

say() {
    printf '\n== %s\n' "$*"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Prints those of the named Debian packages that are not installed, one a line.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}

# Installs those of the named Debian packages that are missing.
install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return 0
    say "installing ${missing[*]}"
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# The same for packages of which only the programs are wanted: what services they bring is neither started now (Debian
# Policy 9.3.3.2, policy-rc.d) nor at the next boot.
install_programs() {
    local missing policy=/usr/sbin/policy-rc.d made= status package units
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        made=yes
    fi
    install_packages "${missing[@]}"
    status=$?
    [ -z "$made" ] || as_root rm "$policy"
    command -v systemctl >/dev/null || return "$status"
    for package in "${missing[@]}"; do
        mapfile -t units < <(dpkg -L "$package" 2>/dev/null | sed -n 's|^.*/systemd/system/\([^/@]*\)$|\1|p')
        [ ${#units[@]} -eq 0 ] || as_root systemctl --quiet disable "${units[@]}"
        mapfile -t units < <(dpkg -L "$package" 2>/dev/null | sed -n 's|^.*/systemd/user/\([^/@]*\)$|\1|p')
        [ ${#units[@]} -eq 0 ] || as_root systemctl --quiet --global disable "${units[@]}"
    done
    return "$status"
}

# Ends the script with code 2 unless there is a Rust toolchain that can build this crate.
need_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    [ -d "$HOME/.cargo/bin" ] && PATH=$PATH:$HOME/.cargo/bin
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    if ! command -v cargo >/dev/null ||
        [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        cat >&2 <<TEXT
Rust $wanted or newer is needed${found:+; found $found}. Debian 12's own is too old. Install it by rustup:
  apt-get install curl && curl -sSf https://sh.rustup.rs | sh -s -- -y
and start again.
TEXT
        exit 2
    fi
}

# Builds podwire, and the example of the given name, which drives it; runs that with the other arguments where the
# caller stands.
run_example() {
    local name=$1 target
    shift
    say "building podwire"
    cargo build --release --bin podwire
    cargo build --example "$name"
    target=$(realpath "${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu")
    say "running it"
    cd "$caller" || return
    as_root env PODWIRE_BIN="$target/release/podwire" "$target/debug/examples/$name" "$@"
}
