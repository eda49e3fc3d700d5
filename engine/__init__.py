"""The HyperKD engine: streams rasters through models in a process of its own."""
