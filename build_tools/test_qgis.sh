#!/bin/sh
# Run tests/qgis and tests/gui with the QGIS of this system, whichever that is.
#   test_qgis.sh NAME [PYTEST ARGUMENT]...     NAME marks the reports: build/reports/*-NAME.xml
# The tests find these variables set:
#   HYPERKD_ENGINE_PYTHON  the engine's interpreter
#   HYPERKD_PLUGIN_ZIP     the plugin as it is installed
#   HYPERKD_SCREENSHOTS    where pictures of the desktop are kept: build/screenshots/NAME
# tests/qgis runs without a screen, tests/gui on an Xvfb. QGIS's own Python runs both, with pytest
# from build/qgis-tests.
set -eu

name=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
work=$root/build/qgis-runs/$name

# A profile and a home of this run alone: settings of another QGIS version would be migrated.
rm -rf "$work" "$root/.qgis-settings" "$root/build/screenshots/$name"
mkdir -p "$work/home" "$work/run" "$root/build/reports" "$root/build/screenshots/$name"
chmod 700 "$work/run"

export HYPERKD_ENGINE_PYTHON="${HYPERKD_ENGINE_ENV:-$root/build/engine}/bin/python"
export HYPERKD_PLUGIN_ZIP="$root/build/hyperkd.zip"
export HYPERKD_SCREENSHOTS="$root/build/screenshots/$name"
export HOME="$work/home" XDG_RUNTIME_DIR="$work/run" TMPDIR="${TMPDIR:-/tmp}"
unset XDG_DATA_HOME XDG_CONFIG_HOME XDG_CACHE_HOME QGIS_PLUGINPATH QGIS_CUSTOM_CONFIG_PATH
export PYTHONPATH="$root/build/qgis-tests" PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
export QT_QPA_PLATFORM=offscreen PYTEST_QT_API=pyqt5
# The models of tests are so small that a second thread only waits for the first.
export OMP_NUM_THREADS=1

version=$(dpkg-query -W -f '${Version}' qgis 2> /dev/null || echo unknown)
echo "[test] QGIS $version ($name), $(/usr/bin/python3 --version)"

run() {   # run FOLDER [COMMAND THAT PYTEST IS RUN BY]
    folder=$1
    report=$root/build/reports/$folder-$name.xml
    shift
    "$@" /usr/bin/python3 -m pytest -q -p no:cacheprovider --junitxml="$report" \
        "$root/tests/$folder" $arguments < /dev/null
}

arguments=$*
cd "$root"
failed=
run qgis env || failed="$failed tests/qgis"
run gui "$here/with_display.sh" || failed="$failed tests/gui"
if [ -n "$failed" ]; then
    echo "[test] failed with QGIS $version:$failed" >&2
    exit 1
fi
