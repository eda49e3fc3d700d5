"""SpectralX: what teaches a frozen optical transformer to read spectral scenes (2508.01731)."""
