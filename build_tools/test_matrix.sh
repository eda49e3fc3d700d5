#!/bin/sh
# Run tests/qgis and tests/gui on other QGIS versions, each in a Debian chroot of its own.
#   test_matrix.sh            make the chroots if they are not there, and test
#   test_matrix.sh prepare    only make them
# Root on Debian. The chroots stay in build/chroot (or HYPERKD_CHROOTS) for the next time.
# A chroot that cannot be made is a failure, never a skip.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
chroots=${HYPERKD_CHROOTS:-$root/build/chroot}
engine=${HYPERKD_ENGINE_ENV:-$root/build/engine}
# Real scenes beside the checkout, which some tests use when they are there.
data=${HYPERKD_DATA:-$(dirname "$root")/shared/data}
fixtures=${HYPERKD_FIXTURES:-$(dirname "$root")/shared/fixtures}

say() { echo "[matrix] $*"; }

prepare() {
    "$here/system_packages.sh" chroot
    # Debian 13 has QGIS 3.40; its backports have 3.44, so that one begins as a copy.
    "$here/debian_chroot.sh" "$chroots/qgis-3.40" trixie qgis python3-qgis qgis-providers \
        gdal-bin python3-gdal fonts-open-sans fonts-dejavu-core xvfb xauth xdotool imagemagick
    "$here/debian_chroot.sh" "$chroots/qgis-3.44" trixie --from "$chroots/qgis-3.40" --backports \
        qgis python3-qgis qgis-providers
}

# Debian 13 has no Python 3.11, so the engine runs on the machine's, seen at the same place inside.
base_python_paths() {
    base=$("$engine/bin/python" -c 'import sys; print(sys.base_prefix)')
    if [ "$base" = /usr ]; then
        # Not all of /usr: that is the chroot's own Debian.
        echo /usr/bin/python3.11 /usr/lib/python3.11
    else
        echo "$base"
    fi
}

run_tests() {   # run_tests VERSION
    version=$1
    chroot=$chroots/qgis-$version
    found=$(chroot "$chroot" dpkg-query -W -f '${Version}' qgis)
    case $found in
    "$version".*) ;;
    *) say "$chroot has QGIS $found instead of $version"; return 1 ;;
    esac
    set --
    for path in "$root" "$engine" $(base_python_paths) "$data" "$fixtures"; do
        [ ! -e "$path" ] || set -- "$@" --bind "$path"
    done
    "$here/in_chroot.sh" "$chroot" "$@" "$engine/bin/python" -c 'import torch, rasterio' ||
        { say "the engine does not run in $chroot"; return 1; }
    "$here/in_chroot.sh" "$chroot" "$@" --chdir "$root" env "HYPERKD_ENGINE_ENV=$engine" \
        "HYPERKD_DATA=$data" "HYPERKD_FIXTURES=$fixtures" "$here/test_qgis.sh" "$version"
}

prepare
[ "${1:-}" != prepare ] || exit 0
failed=
for version in 3.40 3.44; do
    say "tests with QGIS $version"
    run_tests "$version" || failed="$failed $version"
done
if [ -n "$failed" ]; then
    say "failed with QGIS$failed"
    exit 1
fi
say "passed with QGIS 3.40 and 3.44"
