#!/bin/sh
# Containers on lazy roots: run as root, with crun or runc.
#   examples/run.sh IMAGE        an image with python3 (converted by "lazyfs convert")
set -eu
image=${1:?an image with python3}

# Starts as soon as its first files are here.
lazyfs run "$image" python3 -c 'print("hello from a lazy root")'

# Shut in: no network, nothing to write to, nobody's rights.
lazyfs run --network none --read-only -u 65534:65534 "$image" \
    python3 -c 'import os; print("user", os.getuid()); open("/x", "w")' || echo "refused, as it should"

# What it writes can be kept, and gone on with.
changes=$(mktemp -d)
lazyfs run --rw "$changes" "$image" sh -c 'echo kept > /note'
lazyfs run --rw "$changes" "$image" cat /note
rm -rf "$changes"
