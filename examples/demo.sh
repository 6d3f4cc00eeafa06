#!/usr/bin/env bash
# Convert a small real image, mount it, read it, and show how little was fetched.
#
# Needs nothing but lazyfs on PATH, FUSE, and what every Debian has: no network, no registry, no
# root. The image is made of this machine's own files, and everything is removed at the end.
set -euo pipefail

work=$(mktemp -d "${TMPDIR:-/tmp}/lazyfs-demo.XXXXXX")
mountpoint=$work/mnt
readonly work mountpoint

cleanup() {
    trap '' INT TERM HUP
    cd /
    lazyfs umount --lazy "$mountpoint" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' dim='' plain=''
if [ -t 1 ]; then
    bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi

say() { printf '\n%s# %s%s\n' "$dim" "$*" "$plain"; }

show() { # a command line: print it, then run it
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1"
}

stop() {
    echo "demo: $*" >&2
    exit 1
}

command -v lazyfs >/dev/null || stop 'no lazyfs on PATH: run "make demo", or "make venv" first'
[ -e /dev/fuse ] || stop 'this machine has no /dev/fuse'
if [ "$(id -u)" != 0 ]; then
    command -v fusermount3 >/dev/null || stop 'without root the Debian package fuse3 is needed'
fi

digest() { sha256sum "$1" | cut -d' ' -f1; }

# A docker-archive, as "docker save" writes it: two layers, a configuration, a manifest.
make_image() {
    local folder tree=()
    for folder in "$library" /usr/share/{common-licenses,i18n,perl,terminfo,zoneinfo}; do
        if [ -d "$folder" ]; then
            tree+=("${folder#/}")
        fi
    done
    mkdir -p image change/etc "change$library"
    tar -C / -cf image/1.tar --exclude=__pycache__ "${tree[@]}"
    # The second layer adds a file, and deletes one of the first by a whiteout.
    echo 'Welcome to a lazy image.' >change/etc/motd
    touch "change$library/.wh.this.py"
    tar -C change -cf image/2.tar .
    cat >image/config.json <<END
{"architecture": "$(architecture)", "os": "linux", "config": {}, "rootfs": {"type": "layers",
 "diff_ids": ["sha256:$(digest image/1.tar)", "sha256:$(digest image/2.tar)"]}}
END
    cat >image/manifest.json <<END
[{"Config": "config.json", "RepoTags": ["demo:latest"], "Layers": ["1.tar", "2.tar"]}]
END
    tar -C image -cf demo.tar .
}

architecture() {
    case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
    esac
}

share() { # how much of the image's blobs was fetched so far
    lazyfs status --json "$mountpoint" | python3 -c '
import json, sys
[mount] = json.load(sys.stdin)
fetched = mount["totals"]["fetched_bytes"]
blobs = sum(layer["blob_bytes"] for layer in mount["layers"])
print(f"fetched {fetched / 1e6:.2f} MB of {blobs / 1e6:.1f} MB: {fetched / blobs:.1%}")'
}

cd "$work"
library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
module=$library/json/decoder.py
readonly library module

say "An ordinary image: two tar layers of this machine's own files."
make_image
show 'ls -lh demo.tar'

say 'Convert it. Each layer becomes an EROFS image in chunks that can be fetched one by one.'
show 'lazyfs convert --chunk-size 512KiB --no-cache docker-archive:demo.tar oci:images:demo'

say 'Look at it: this reads some kilobytes of the image.'
show 'lazyfs inspect oci:images:demo'

say 'Mount it. The cache is a new one, so nothing is there yet.'
show 'lazyfs mount oci:images:demo mnt --mkdir --cache-dir cache'
show 'ls -l mnt mnt/usr'
share

say 'Read a file. Only the chunks under it are fetched, and each byte is checked.'
show "wc -l mnt$module"
show "cmp mnt$module $module && echo the same as the original"
share

say 'The layers are one tree: what the second one deleted is gone.'
show 'cat mnt/etc/motd'
show "ls mnt$library/this.py || echo gone"

say 'Run something from it: this Python takes its library from the mount.'
show "PYTHONHOME=$work/mnt/usr python3 -S -c 'import json; print(json.__file__)'"
share

say 'All that is known of the mount.'
show 'lazyfs status mnt'

say 'Take it down. What was fetched stays in the cache, for the next mount.'
show 'lazyfs umount mnt'
show 'du -sh cache'
