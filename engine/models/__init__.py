"""Architectures: tensors in, tensors out; no files and no rasters."""
