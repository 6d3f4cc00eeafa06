#!/usr/bin/env bash
# Lazy containers by containerd and ctr, with a containerd and folders of their own.
#
#   examples/containerd.sh IMAGE COMMAND...      an image that "lazyfs convert" has pushed
#
# Needs root, lazyfs with the extra "containerd" on PATH, containerd and runc. The containerd of this
# machine is left alone, and everything is removed at the end.
set -euo pipefail

image=${1:?usage: $0 IMAGE COMMAND...}
shift
work=$(mktemp -d /tmp/lazyfs-ctr.XXXXXX)
containerd=
snapshotter=
readonly image work

cleanup() {
    trap '' INT TERM HUP
    [ -z "$containerd" ] || { kill "$containerd" && wait "$containerd"; } 2>/dev/null || true
    [ -z "$snapshotter" ] || { kill "$snapshotter" && wait "$snapshotter"; } 2>/dev/null || true
    for layer in "$work"/root/layers/*; do
        umount --lazy "$layer" 2>/dev/null || true
    done
    lazyfs umount "$work/root/store" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for() { # SOCKET: at most half a minute
    for _ in {1..300}; do
        [ -S "$1" ] && return
        sleep 0.1
    done
    echo "$1 does not come" >&2
    exit 1
}

run_ctr() { ctr --address "$work/c.sock" "$@"; }

cat > "$work/config.toml" <<END
version = 2
root = "$work/containerd"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$work/c.sock"
[proxy_plugins.lazyfs]
  type = "snapshot"
  address = "$work/s.sock"
END

lazyfs snapshotter --root "$work/root" --address "$work/s.sock" --cache-dir "$work/cache" \
    2> "$work/snapshotter.log" &
snapshotter=$!
wait_for "$work/s.sock"
containerd -c "$work/config.toml" 2> "$work/containerd.log" &
containerd=$!
wait_for "$work/c.sock"

echo "# pulled: nothing of the layers but what mounting them takes"
time lazyfs ctr-pull --containerd "$work/c.sock" "$image"
run_ctr content ls

echo "# the container"
time run_ctr run --rm --snapshotter lazyfs "$image" example "$@"

echo "# what it read was fetched, and no more"
lazyfs status "$work/root/store"
run_ctr snapshots --snapshotter lazyfs usage

run_ctr images rm --sync "$image"
