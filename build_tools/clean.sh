#!/bin/sh
# Delete a build folder with the chroots in it.   clean.sh FOLDER
set -eu
folder=$1
# in_chroot.sh leaves no mounts, but one made by hand would be emptied by rm.
if grep -q " $folder/" /proc/self/mountinfo 2> /dev/null; then
    echo "[clean] there are mounts in $folder; unmount them first" >&2
    exit 1
fi
rm -rf --one-file-system "$folder"
