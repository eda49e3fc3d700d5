#!/bin/sh
# Run a command in a chroot, with its own mounts and processes.
#   in_chroot.sh ROOT [--bind PATH]... [--chdir PATH] COMMAND...
# Every PATH of the machine is seen at the same place inside. Mounts and processes live in
# namespaces of their own: when the command ends, or is killed, both are gone, so that no mount
# is ever left in ROOT for an rm -rf to walk into.
set -eu

if [ "${HYPERKD_IN_NAMESPACE:-}" != yes ]; then
    exec env HYPERKD_IN_NAMESPACE=yes unshare --mount --propagation private --pid --fork \
        --kill-child "$0" "$@"
fi

root=$1
shift

bind() {   # bind PATH: a file or a folder, at the same place inside
    if [ -d "$1" ]; then
        mkdir -p "$root$1"
    else
        mkdir -p "$root$(dirname "$1")"
        [ -e "$root$1" ] || : > "$root$1"
    fi
    mount --rbind "$1" "$root$1"
}

mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666
mount -t tmpfs tmpfs "$root/dev/shm"
# Names are resolved as on the machine; there the file may be a link into /run.
[ ! -e /etc/resolv.conf ] || cat /etc/resolv.conf > "$root/etc/resolv.conf"

chdir=/
while :; do
    case $1 in
    --bind) bind "$2"; shift 2 ;;
    --chdir) chdir=$2; shift 2 ;;
    *) break ;;
    esac
done

# The caller's variables stay outside: one of QGIS's or Python's would change what is tested.
# A command that needs some begins with `env NAME=VALUE`.
exec chroot "$root" /usr/bin/env -i -C "$chdir" \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1 "$@"
