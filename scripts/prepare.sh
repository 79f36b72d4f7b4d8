# shellcheck shell=bash
# Sourced by the scripts beside it: what they need on a fresh Debian 12. Leaves them at the root of the tree.

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# Debian packages: what compiling takes, and what nodes and pods in network namespaces are made of.
needed=(
    clang gcc make pkg-config libc6-dev linux-libc-dev libelf-dev zlib1g-dev protobuf-compiler
    iproute2 iputils-ping curl iperf3 tcpdump ethtool traceroute util-linux procps
    nftables conntrack iptables containernetworking-plugins systemd tshark
)

# Container runtimes that tests start by hand, with root, state and sockets of their own.
# shellcheck disable=SC2034
runtimes=(containerd busybox-static podman conmon runc)

# The store behind the API server that tests start by hand.
# shellcheck disable=SC2034
api_server=(etcd-server)

# What scrapes and judges metrics, started by hand too.
# shellcheck disable=SC2034
monitoring=(prometheus)

# Other data planes that podwire is measured beside.
# shellcheck disable=SC2034
peers=(openvswitch-switch-dpdk dpdk-dev)

# The longest-prefix match that podwire's is measured beside.
# shellcheck disable=SC2034
dpdk=(libdpdk-dev)

# What counts a stage's instructions.
# shellcheck disable=SC2034
counting=(valgrind)

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

# Where the API server that tests run against is kept, outside of the tree and of what `cargo clean` removes.
kubernetes_version=1.20.2
kubernetes=${PODWIRE_KUBERNETES:-${XDG_CACHE_HOME:-/var/cache}/podwire/kubernetes-$kubernetes_version}

# Whether both programs of Kubernetes in the given directory start and are of our version.
is_kubernetes() {
    local program
    for program in kube-apiserver kube-controller-manager; do
        [ "$("$1/$program" --version 2>/dev/null)" = "Kubernetes v$kubernetes_version" ] || return
    done
}

# Builds kube-apiserver and kube-controller-manager from Debian's source package, once: some minutes, and 2 GB of disk
# while it lasts. They appear in their place in one step; what an interrupted build has left is removed.
build_kubernetes() {
    is_kubernetes "$kubernetes" && return
    install_packages dpkg-dev golang-1.19-go || return
    mkdir -p "$(dirname "$kubernetes")" || return
    (
        flock 9 || exit
        trap 'rm -rf "$kubernetes.part"' EXIT
        is_kubernetes "$kubernetes" && exit
        say "building the Kubernetes API server $kubernetes_version for the tests (once, kept in $kubernetes)"
        rm -rf "$kubernetes.part" "$kubernetes"
        mkdir -p "$kubernetes.part"/{bin,lists/partial,go/src/k8s.io} &&
            cd "$kubernetes.part/go/src/k8s.io" && fetch_kubernetes "$kubernetes.part" &&
            cd kubernetes && compile_kubernetes "$kubernetes.part" && is_kubernetes "$kubernetes.part/bin" &&
            mv "$kubernetes.part/bin" "$kubernetes"
    ) 9>"$kubernetes.lock"
}

# Unpacks Debian 12's source of Kubernetes into the directory `kubernetes` here. Its list of sources is a private one
# below the given directory: that of the machine stays as it is.
fetch_kubernetes() {
    local list=$1/sources.list mirror apt
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    printf 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' \
        "${mirror:-http://deb.debian.org/debian/}" >"$list"
    apt=(apt-get -q -o "Dir::Etc::SourceList=$list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$1/lists"
        -o "Dir::Cache=$1" -o APT::Sandbox::User=root)
    "${apt[@]}" update && "${apt[@]}" source kubernetes && mv kubernetes-*/ kubernetes
}

# Compiles the two programs into `bin` of the given directory, as `make` there does, without its other products. What
# the sources leave to be generated is the OpenAPI description alone.
compile_kubernetes() {
    local inputs package=k8s.io/kubernetes
    local variable=$package/vendor/k8s.io/component-base/version
    export GO111MODULE=off GOFLAGS='' GOPATH=$1/go GOCACHE=$1/cache GOTMPDIR=$1 HOME=$1 CGO_ENABLED=0
    inputs=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg/apis vendor/k8s.io/*/ |
        grep -v -e /code-generator/ -e /sample-apiserver/ -e /kube-openapi/ |
        xargs -n 1 dirname | sort -u | sed "s|^|$package/|" | paste -s -d,)
    nice /usr/lib/go-1.19/bin/go run "$package/vendor/k8s.io/kube-openapi/cmd/openapi-gen" --input-dirs "$inputs" \
        --output-package "$package/pkg/generated/openapi" --output-file-base zz_generated.openapi \
        --go-header-file /dev/null --report-filename /dev/null &&
        nice /usr/lib/go-1.19/bin/go build -trimpath -o "$1/bin/" \
            -ldflags "-s -w -X $variable.gitVersion=v$kubernetes_version -X $variable.gitMajor=1 -X $variable.gitMinor=20" \
            ./cmd/kube-apiserver ./cmd/kube-controller-manager
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
    as_root env PODWIRE_BIN="$target/release/podwire" PODWIRE_KUBERNETES="$kubernetes" \
        "$target/debug/examples/$name" "$@"
}
