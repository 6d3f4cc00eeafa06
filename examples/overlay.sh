#!/bin/sh
# An overlay over lazy layers, by hand and by lazyfs: run as root.
#   examples/overlay.sh IMAGE
set -eu
image=${1:?an image of EROFS layers}
work=$(mktemp -d)
tidy_up() {
    umount "$work/merged" 2>/dev/null || true
    lazyfs umount "$work/rw" 2>/dev/null || true
    lazyfs umount "$work/layers" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap tidy_up EXIT
mkdir "$work/upper" "$work/work" "$work/merged"

# Each layer in a directory of its own, and the kernel's overlayfs on top.
lower=$(lazyfs mount --layers --mkdir "$image" "$work/layers")
mount -t overlay overlay \
    -o "$lower,upperdir=$work/upper,workdir=$work/work,index=on,metacopy=on,redirect_dir=on" "$work/merged"
echo changed > "$work/merged/note"
find "$work/upper" -type f
umount "$work/merged"

# The same in one command; --rw=DIR would keep the changes.
lazyfs mount --rw --mkdir "$image" "$work/rw"
echo changed > "$work/rw/note"
lazyfs status "$work/rw"
lazyfs umount "$work/rw"
