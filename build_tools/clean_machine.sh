#!/bin/sh
# Show `make demo` and `make test` on a clean machine: a fresh Debian 12 with Python 3.11, make and
# git, into which this repository is cloned. Each is run twice, to show the second set-up's time.
#   clean_machine.sh [--bind PATH]... [--env FILE] [--keep] [TARGET]...     default: demo test
# --bind PATH   a file or folder of this machine that is seen at the same place inside (a folder
#               of wheels, pip's settings)
# --env FILE    lines NAME=VALUE that are set inside (proxies, PIP_ variables)
# --keep        leave the machine in build/clean/machine for a look at it
# Root on Debian. What is cloned is HEAD; the results are in build/clean/RUN-TARGET.log.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
work=$root/build/clean
machine=$work/machine
inside=/root/hyperkd

binds= variables= keep=
while :; do
    case ${1:-} in
    --bind) binds="$binds --bind $2"; shift 2 ;;
    --env) variables=$(grep -E '^[A-Za-z_][A-Za-z_0-9]*=[^ ]*$' "$2"); shift 2 ;;
    --keep) keep=yes; shift ;;
    *) break ;;
    esac
done
[ $# -gt 0 ] || set -- demo test

say() { echo "[clean machine] $*"; }

in_machine() {
    # shellcheck disable=SC2086
    "$here/in_chroot.sh" "$machine" $binds --chdir /root env $variables "$@"
}

"$here/system_packages.sh" chroot
mkdir -p "$work"
# The pristine one is kept; each show begins with a copy.
"$here/debian_chroot.sh" "$work/pristine" bookworm python3.11 make git ca-certificates
rm -rf --one-file-system "$machine"
cp -a --reflink=auto "$work/pristine" "$machine"
[ -n "$keep" ] || trap 'rm -rf --one-file-system "$machine"' EXIT

git -c safe.directory="$root" clone -q --no-hardlinks "$root" "$machine$inside"
chown -R 0:0 "$machine$inside"
say "Debian $(cat "$machine/etc/debian_version"), $(in_machine python3.11 --version)," \
    "commit $(git -c safe.directory="$root" -C "$root" rev-parse --short HEAD)"

failed=
for target in "$@"; do
    for run in first second; do
        log=$work/$run-$target.log
        started=$(date +%s)
        if in_machine make -C "$inside" "$target" > "$log" 2>&1 < /dev/null; then
            result=passed
        else
            result=failed failed="$failed $target"
            tail -n 30 "$log"
        fi
        say "make $target, $run time: $result after $(($(date +%s) - started)) s ($log)"
        [ $result = passed ] || break
    done
done
[ -z "$failed" ] || { say "failed:$failed"; exit 1; }
rm -rf "$work/demo"
[ ! -d "$machine$inside/build/demo" ] || cp -r "$machine$inside/build/demo" "$work/demo"
