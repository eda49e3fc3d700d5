"""Rasters in and out: scenes, band tables, tiles, streaming and writing."""
