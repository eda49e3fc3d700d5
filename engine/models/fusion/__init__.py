"""Fusion: the spectra of a coarse image at the resolution of a fine one (CSAKD, 2406.19666)."""
