#!/bin/sh
# Run a command with a screen of its own: an Xvfb that ends with it.
#   with_display.sh COMMAND...
set -u

folder=$(mktemp -d)
# Xvfb picks a free number itself and writes it to descriptor 3.
# 96 dpi: Debian 12's Xvfb says 100 else, and QGIS 3.40 then scales its dialogs by 1.04.
Xvfb -displayfd 3 -screen 0 1280x900x24 -dpi 96 -nolisten tcp \
    3> "$folder/number" 2> "$folder/log" < /dev/null &
server=$!
trap 'kill $server 2> /dev/null; wait $server 2> /dev/null; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

tries=0
while [ ! -s "$folder/number" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 100 ] || ! kill -0 $server 2> /dev/null; then
        echo "[display] Xvfb does not start:" >&2
        cat "$folder/log" >&2
        exit 1
    fi
    sleep 0.1
done
DISPLAY=":$(cat "$folder/number")" QT_QPA_PLATFORM=xcb
export DISPLAY QT_QPA_PLATFORM
unset WAYLAND_DISPLAY
"$@"
