#!/bin/sh
# Make a Debian chroot, once; a finished one is left as it is.
#   debian_chroot.sh ROOT SUITE [--from ROOT] [--backports] PACKAGE...
# --from ROOT: begin with a copy of that chroot instead of an empty one.
# --backports: take the packages from SUITE-backports, upgrading those that are there.
# Needs root and debootstrap. The mirror, proxies and certificates are those of the machine's apt.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$1 suite=$2
shift 2
from= backports=
while :; do
    case ${1:-} in
    --from) from=$2; shift 2 ;;
    --backports) backports=$suite-backports; shift ;;
    *) break ;;
    esac
done

say() { echo "[chroot] $*" >&2; }

# The wishes are the stamp: another list of packages makes the chroot again.
wish="$suite ${from:+from $(basename "$from") }$backports $*"
if [ "$(cat "$root/.hyperkd-ready" 2> /dev/null)" = "$wish" ]; then
    exit 0
fi
[ "$(id -u)" -eq 0 ] || { say "a chroot needs root; run this with sudo"; exit 1; }

mirror() {   # of the machine's own Debian release, not of another source in its lists
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        "Release: $codename" "Component: main" | head -n 1)
    echo "${uri:-http://deb.debian.org/debian}"
}

carry_apt_settings() {   # the machine's proxies, certificates and patience, and its trust store
    apt-config dump | grep -E '^Acquire::(http|https|ftp|Check-|Retries)' \
        > "$root/etc/apt/apt.conf.d/90machine" || true
    printf 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' \
        > "$root/etc/apt/apt.conf.d/91small"
    # No manuals and translations, no waiting for the disk: a chroot can be made again.
    printf 'force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n%s' \
        'path-exclude=/usr/share/locale/*' > "$root/etc/dpkg/dpkg.cfg.d/90small"
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
        mkdir -p "$root/etc/ssl/certs"
        cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    fi
    # Packages must not start services on the machine.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

# Mounts of in_chroot.sh end with it; one that is here came from elsewhere, and deleting the
# folder would delete what is mounted.
if grep -q " $root/" /proc/self/mountinfo; then
    say "$root has mounts in it; unmount them first"
    exit 1
fi
rm -rf --one-file-system "$root" "$root.part"
mkdir -p "$(dirname "$root")"

started=$(date +%s)
if [ -n "$from" ]; then
    say "copying $from to $root"
    cp -a --reflink=auto "$from" "$root.part"
    rm -f "$root.part/.hyperkd-ready"
else
    say "making a $suite chroot in $root"
    # Out of the way of a caller's TMPDIR that does not exist inside.
    env -u TMPDIR debootstrap --variant=minbase "$suite" "$root.part" "$(mirror)" \
        > "$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; exit 1; }
fi
# Set up under another name, so that a half-made one is never taken for a whole one.
mv "$root.part" "$root"
carry_apt_settings
target=
if [ -n "$backports" ]; then
    echo "deb $(mirror) $backports main" > "$root/etc/apt/sources.list.d/backports.list"
    target="-t $backports"
fi
say "installing $* from ${backports:-$suite}"
# shellcheck disable=SC2086
"$here/in_chroot.sh" "$root" sh -c 'apt-get update && apt-get install -y "$@" && apt-get clean' \
    sh $target "$@" >> "$root.log" 2>&1 < /dev/null || { tail -n 20 "$root.log" >&2; exit 1; }
printf '%s\n' "$wish" > "$root/.hyperkd-ready"
say "$root is ready after $(($(date +%s) - started)) s"
