"""A job that writes a raster, and then does not look whether it is cancelled."""

import time

import numpy as np
from affine import Affine

from engine.jobs.request import JobRequest
from engine.raster.tiles import Window
from engine.raster.writer import Grid, RasterWriter


class Request(JobRequest):
    output: str


def scribble(request, feedback):
    grid = Grid(24, 17, Affine(30, 0, 0, 0, -20, 0), None)
    with RasterWriter(request.output, grid, ["band"], "uint8", 0) as writer:
        writer.write(Window(0, 0, 24, 17), np.ones((1, 24, 17), np.uint8))
        feedback.info("started")
        time.sleep(60)
    return {}
