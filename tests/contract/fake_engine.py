"""An engine of the standard library alone, whose commands finish, fail, crash, nap or go deaf.

``fake_engine.py [START] serve …``: START is how it starts: "well" (the default), "dies", "silent",
"other_protocol", "other_version", "chatty". The last makes noise on standard output.
Commands of the product write rasters and reports as the engine would, with GDAL where it is there.
"""

from __future__ import annotations

import json
import os
import queue
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

METADATA = (Path(__file__).resolve().parents[2] / "metadata.txt").read_text(encoding="utf-8")
VERSION = re.search(r"^version=(.+)$", METADATA, re.MULTILINE)[1]

cancelled: set[str] = set()
gone = threading.Event()


def say(event, **fields):
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def hello(start):
    protocol = 99 if start == "other_protocol" else 1
    version = "0.0.1" if start == "other_version" else VERSION
    say(
        "hello",
        protocol=protocol,
        engine_version=version,
        python="3.11",
        device="cpu",
        device_reason=f"no GPU wanted, process {os.getpid()}",
    )


class Cancelled(Exception):
    pass


def nap(job, parameters):
    """Work for some seconds, and listen to cancel; leaves a half file only while it works."""
    seconds = float(parameters.get("seconds", 1.0))
    steps = max(1, int(seconds / 0.02))
    half = Path(parameters["output"] + ".half") if "output" in parameters else None
    if half:
        half.write_text("half")
    try:
        for step in range(steps):
            if job in cancelled or gone.is_set():
                raise Cancelled
            say("progress", job=job, fraction=step / steps, message=f"Strip {step // 10}")
            time.sleep(0.02)
    finally:
        if half:
            half.unlink()
    return {"seconds": seconds}


def echo(job, parameters):
    say("info", job=job, message="Here I am")
    say("warning", job=job, message="Mind the gap")
    say("progress", job=job, fraction=1.0, message="Done")
    return {"parameters": parameters, "pid": os.getpid()}


def refuse(job, parameters):
    say("error", job=job, error="SceneError", message="The scene is empty.", remedy="Take another.")


def crash(job, parameters):
    say("progress", job=job, fraction=0.5, message="Halfway")
    sys.stderr.write("terrible thing\n")
    sys.stderr.flush()
    os._exit(7)


def crash_at_once(job, parameters):
    sys.stderr.write("out of luck\n")
    sys.stderr.flush()
    os._exit(9)


def deaf(job, parameters):
    """Never listen, and have a child that must not survive either."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(parameters["child"]).write_text(str(child.pid))
    say("progress", job=job, fraction=0.1, message="Deaf")
    time.sleep(60)


def sleep_in(job, parameters):
    """Say nothing at all, but listen."""
    while job not in cancelled:
        time.sleep(0.02)
    raise Cancelled


def end_idle(job, parameters):
    """What an engine does that falls asleep in the moment in which the job comes."""
    marker = Path(parameters["marker"])
    if marker.exists():
        return {"pid": os.getpid()}
    marker.write_text("slept")
    os._exit(0)


def classify(job, parameters):
    from osgeo import gdal

    if parameters.get("tile_size") == 4096:
        return nap(job, {"seconds": 30, "output": parameters["output"]})
    say("progress", job=job, fraction=0.3, message="Classifying")
    scene = gdal.Open(parameters["input"])
    made = {}
    for name, count, kind in (
        ("output", 1, gdal.GDT_Byte),
        ("confidence", 1, gdal.GDT_Float32),
        ("probabilities", 2, gdal.GDT_Float32),
        ("support", 1, gdal.GDT_Float32),
    ):
        if name not in parameters:
            continue
        driver = gdal.GetDriverByName("GTiff")
        raster = driver.Create(parameters[name], scene.RasterXSize, scene.RasterYSize, count, kind)
        raster.SetGeoTransform(scene.GetGeoTransform())
        raster.SetProjection(scene.GetProjection())
        band = raster.GetRasterBand(1)
        band.Fill(1 if name == "output" else 0.8)
        if name == "output":
            colors = gdal.ColorTable()
            colors.SetColorEntry(1, (200, 30, 30, 255))
            colors.SetColorEntry(2, (30, 200, 30, 255))
            band.SetColorTable(colors)
            band.SetCategoryNames(["", "roof", "tree"])
        band = None
        raster = None
        made[name] = parameters[name]
    say("progress", job=job, fraction=1.0, message="Writing")
    return {**made, "valid_pixels": 408, "seconds": 0.1, "device": "cpu"}


def segment(job, parameters):
    made = classify(job, parameters)
    if made is not None and "polygons" in parameters:
        made["polygons"] = write_polygons(parameters["input"], parameters["polygons"])
    return made


def write_polygons(scene_path, path):
    """Write one polygon of each class, the left and the right half of the scene."""
    from osgeo import gdal, ogr, osr

    scene = gdal.Open(scene_path)
    left, width_m, _, top, _, height_m = scene.GetGeoTransform()
    reference = osr.SpatialReference()
    reference.ImportFromWkt(scene.GetProjection())
    source = ogr.GetDriverByName("GPKG").CreateDataSource(path)
    layer = source.CreateLayer("polygons", reference, ogr.wkbPolygon)
    for name, kind in (
        ("class_value", ogr.OFTInteger),
        ("class_name", ogr.OFTString),
        ("area_m2", ogr.OFTReal),
        ("mean_confidence", ogr.OFTReal),
    ):
        layer.CreateField(ogr.FieldDefn(name, kind))
    half_px = scene.RasterXSize // 2
    bottom = top + height_m * scene.RasterYSize
    for value, name in ((1, "roof"), (2, "tree")):
        west, east = (left + width_m * half_px * (value - 1 + side) for side in (0, 1))
        corners = [(west, top), (east, top), (east, bottom), (west, bottom), (west, top)]
        ring = ", ".join(f"{x} {y}" for x, y in corners)
        feature = ogr.Feature(layer.GetLayerDefn())
        feature["class_value"], feature["class_name"] = value, name
        feature["area_m2"] = (east - west) * (top - bottom)
        feature["mean_confidence"] = 0.8
        feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON (({ring}))"))
        layer.CreateFeature(feature)
    return path


def scores(job, parameters):
    report = parameters.get("report")
    if report:
        Path(report).write_text("<html><body>scores</body></html>")
    if "output" in parameters:
        Path(parameters["output"]).write_bytes(b"package")
    numbers = ("overall_accuracy", "balanced_accuracy", "kappa", "f1_macro", "iou_macro")
    result = {name: 0.5 + 0.05 * index for index, name in enumerate(numbers)}
    say("info", job=job, message="request: " + json.dumps(parameters))
    return {**result, "report": report, "output": parameters.get("output")}


def pretraining(job, parameters):
    """Train for no time; a seed of 99 asks for a run that lasts, and leaves its checkpoint."""
    if parameters.get("seed") == 99:
        Path(parameters["output"] + ".checkpoint.safetensors").write_bytes(b"half")
        return nap(job, {"seconds": 30})
    Path(parameters["output"]).write_bytes(b"package")
    numbers = {"psnr_db": 30.5, "ssim": 0.9, "spectral_angle_deg": 2.5}
    whole = {f"{name}_whole": value for name, value in numbers.items()}
    return {"output": parameters["output"], **numbers, **whole, "seconds": 0.1, "device": "cpu"}


def adapt_backbone(job, parameters):
    return {**pretraining(job, parameters), "trainable_parameters": 123_456}


def train_segmentation(job, parameters):
    return {**scores(job, parameters), "ece": 0.03, "trainable_parameters": 123_456}


def train_regression(job, parameters):
    Path(parameters["output"]).write_bytes(b"package")
    return {"output": parameters["output"], "rmse": 1.5, "mae": 1.25, "r2": -0.5}


def estimate(job, parameters):
    from osgeo import gdal

    scene = gdal.Open(parameters["input"])
    size = scene.RasterXSize, scene.RasterYSize
    raster = gdal.GetDriverByName("GTiff").Create(parameters["output"], *size, 1, gdal.GDT_Float32)
    raster.SetGeoTransform(scene.GetGeoTransform())
    raster.SetProjection(scene.GetProjection())
    band = raster.GetRasterBand(1)
    values = [10.0 + 40.0 * column / (size[0] - 1) for column in range(size[0])]
    packed = struct.pack(f"{size[0]}f", *values)
    for row in range(size[1]):
        band.WriteRaster(0, row, size[0], 1, packed, buf_type=gdal.GDT_Float32)
    band.SetDescription("soil organic carbon")
    band.SetUnitType("g/kg")
    del band, raster
    return {"output": parameters["output"], "valid_pixels": 408, "seconds": 0.1, "device": "cpu"}


def fuse(job, parameters):
    """Write a cube of four bands on a grid twice as fine, and a raster of two residuals."""
    made = {"output": write_fused(parameters, "output", (480, 560, 660, 850))}
    if "consistency" in parameters:
        made["consistency"] = write_fused(parameters, "consistency", (None, None))
    if "report" in parameters:
        Path(parameters["report"]).write_text("<html><body>fused</body></html>")
        made["report"] = parameters["report"]
    numbers = {"shift_x": 1.02, "shift_y": -0.5, "consistency_hsi": 0.01, "consistency_msi": 0.02}
    return {**made, **numbers, "method": "glphs", "valid_pixels": 408, "seconds": 0.1}


def write_fused(parameters, name, wavelengths_nm):
    from osgeo import gdal

    scene = gdal.Open(parameters["hyperspectral"])
    width, height = 2 * scene.RasterXSize, 2 * scene.RasterYSize
    left, x_size, _, top, _, y_size = scene.GetGeoTransform()
    driver = gdal.GetDriverByName("GTiff")
    raster = driver.Create(parameters[name], width, height, len(wavelengths_nm), gdal.GDT_Float32)
    raster.SetGeoTransform((left, x_size / 2, 0, top, 0, y_size / 2))
    raster.SetProjection(scene.GetProjection())
    for number, wavelength in enumerate(wavelengths_nm, 1):
        band = raster.GetRasterBand(number)
        row = struct.pack(f"{width}f", *(0.2 * number * x / width for x in range(width)))
        for y in range(height):
            band.WriteRaster(0, y, width, 1, row, buf_type=gdal.GDT_Float32)
        if wavelength:
            band.SetMetadataItem("wavelength", str(wavelength))
    del band, raster
    return parameters[name]


def train_fusion(job, parameters):
    if parameters.get("seed") == 99:
        return pretraining(job, parameters)
    Path(parameters["output"]).write_bytes(b"package")
    numbers = {"psnr_db": 33.5, "sam_deg": 2.5, "ergas": 1.5, "teacher_psnr_db": 33.75}
    found = {"best_classical_psnr_db": 32.5, "shift_x": 1.0, "shift_y": 0.0, "parameters": 123_456}
    return {"output": parameters["output"], **numbers, **found, "seconds": 0.1, "device": "cpu"}


def assess_fusion(job, parameters):
    """Count what is asked for: scores beside a reference, consistency beside the two inputs."""
    made = {"report": parameters["report"]}
    Path(parameters["report"]).write_text("<html><body>quality</body></html>")
    if "reference" in parameters:
        scores = {"psnr_db": 30.5, "sam_deg": 2.5, "ergas": 1.5, "rmse": 0.01}
        made |= {**scores, "uiqi": 0.9, "q2n": 0.875}
    if "hyperspectral" in parameters:
        made |= {"consistency_hsi": 0.01, "consistency_msi": 0.02}
    return made


def check_engine(job, parameters):
    text = "HyperKD 0.1.0\nAll is well.\n"
    if "report" in parameters:
        Path(parameters["report"]).write_text(text)
    say("info", job=job, message=text)
    return {"ok": True, "seconds": 0.1, "text": text, "report": parameters.get("report")}


COMMANDS = {
    "adapt_backbone": adapt_backbone,
    "assess_accuracy": scores,
    "assess_fusion": assess_fusion,
    "check_engine": check_engine,
    "classify": classify,
    "crash": crash,
    "crash_at_once": crash_at_once,
    "deaf": deaf,
    "describe_model": scores,
    "distill_backbone": pretraining,
    "echo": echo,
    "end_idle": end_idle,
    "estimate": estimate,
    "fuse": fuse,
    "nap": nap,
    "pretrain_teacher": pretraining,
    "refuse": refuse,
    "segment": segment,
    "sleep_in": sleep_in,
    "train_classifier": scores,
    "train_fusion": train_fusion,
    "train_regression": train_regression,
    "train_segmentation": train_segmentation,
}


def do_jobs(waiting):
    while True:
        message = waiting.get()
        job = message["job"]
        try:
            if job in cancelled:
                raise Cancelled
            result = COMMANDS[message["command"]](job, message["parameters"])
            if result is not None:
                say("result", job=job, result=result)
        except Cancelled:
            say("error", job=job, error="CancelledError", message="The job was cancelled.")
        except Exception as error:
            say("error", job=job, error=type(error).__name__, message=str(error), remedy="")


def main():
    start = sys.argv[1] if sys.argv[1] != "serve" else "well"
    if start == "dies":
        sys.stderr.write("ImportError: no torch today\n")
        sys.exit(3)
    if start == "chatty":
        sys.stdout.write("a library says hello\n{half of a line\n\n")
    waiting: queue.Queue = queue.Queue()
    threading.Thread(target=do_jobs, args=(waiting,), daemon=True).start()
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "hello" and start != "silent":
            hello(start)
        elif message["type"] == "run":
            waiting.put(message)
        elif message["type"] == "cancel":
            cancelled.add(message["job"])
        elif message["type"] == "shutdown":
            break
    gone.set()
    time.sleep(0.05)


if __name__ == "__main__":
    main()
