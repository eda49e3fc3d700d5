#!/bin/sh
# Install the Debian packages that a step needs, when they are missing.
#   system_packages.sh GROUP...     groups: engine, qgis, desktop, chroot
# Does nothing, in a tenth of a second, when all are there. Uses sudo when not root.
set -eu

packages_of() {
    case $1 in
    # ensurepip makes the engine's environment; libgomp and libstdc++ come with torch's wheel's needs
    engine) echo "python3 python3-venv git ca-certificates" ;;
    # Open Sans is the font of QGIS's map legends: without it trixie's QGIS shows a warning bar
    qgis) echo "qgis python3-qgis qgis-providers gdal-bin python3-gdal python3-pip git
                fonts-open-sans fonts-dejavu-core" ;;
    desktop) echo "xvfb xauth xdotool imagemagick" ;;
    chroot) echo "debootstrap" ;;
    *) echo "system_packages.sh: unknown group $1" >&2; exit 2 ;;
    esac
}

# What must be on the path where there is no dpkg (other systems install by their own means).
programs_of() {
    case $1 in
    engine) echo "git" ;;
    qgis) echo "qgis_process gdalinfo" ;;
    desktop) echo "Xvfb xdotool import" ;;
    chroot) echo "debootstrap chroot unshare" ;;
    esac
}

require_programs() {
    for group in "$@"; do
        for program in $(programs_of "$group"); do
            command -v "$program" > /dev/null || {
                echo "[setup] $program is missing, and this is not a Debian: please install it." >&2
                exit 1
            }
        done
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        echo "[setup] these packages are missing and neither root nor sudo is at hand:" \
            "$missing" >&2
        exit 1
    fi
}

command -v dpkg-query > /dev/null || { require_programs "$@"; exit 0; }

wanted=
for group in "$@"; do
    wanted="$wanted $(packages_of "$group")"
done
missing=
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "[setup] installing Debian packages:$missing" >&2
as_root apt-get update -q >&2
# A lock that another apt holds is waited for: unattended upgrades run on fresh machines.
# shellcheck disable=SC2086
as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq -o Dpkg::Use-Pty=0 \
    --no-install-recommends $missing < /dev/null >&2
