"""Writing ``model.json``: a STAC Item with the Machine Learning Model extension.

Written to https://github.com/radiantearth/stac-spec (1.1.0) and
https://github.com/stac-extensions/mlm (1.5.0). What neither has a field for is ``hyperkd:``;
`engine.packages.item` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from engine.packages.item import (
    CHECKSUM_NOTE,
    FINE_PREFIX,
    FORMAT_VERSION,
    SHA256_PREFIX,
    WEIGHTS_NAME,
)
from engine.packages.metadata import ModelInfo
from engine.raster.spectra import BandTable
from engine.raster.style import ClassInfo

# Classes stand inside mlm:output, whose schema checks them; the classification extension itself
# would only look at the item's own fields, so it is not listed.
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/version/v1.2.0/schema.json",
)


@dataclass(frozen=True)
class WeightsFile:
    """What model.json says of the file of weights.

    Args:
        sha256: 64 hexadecimal digits.
        size_bytes: length of the file.
        parameter_count: numbers in the model's own tensors.
        memory_bytes: what they take when loaded.
    """

    sha256: str
    size_bytes: int
    parameter_count: int
    memory_bytes: int


def item_text(info: ModelInfo, weights: WeightsFile) -> bytes:
    """Write model.json, as UTF-8."""
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": info.name,
        **_place(info),
        "properties": _plain(
            {
                "title": info.title,
                "description": info.description,
                "version": info.version,
                "license": info.licence,
                **_times(info),
                "bands": _stac_bands(info),
                **_mlm_fields(info, weights),
                **_hyperkd_fields(info),
            }
        ),
        "links": [],
        "assets": {"weights": _weights_asset(weights, info)},
    }
    text = json.dumps(item, indent=2, ensure_ascii=False, allow_nan=False)
    return _say_that_checksums_are_no_secrets(text).encode()


def _say_that_checksums_are_no_secrets(text: str) -> str:
    """Put a note on the lines of checksums; `engine.packages.item` takes it away again.

    The plugin site scans uploads with detect-secrets, line by line. It takes every long hexadecimal
    text for a secret, unless the same line says that it is none; JSON has no comments to say it in.
    """
    for key, kind in ((r"file:checksum", "SHA-256 as multihash"), (r"\w*sha256", "SHA-256")):
        note = f'"{CHECKSUM_NOTE}": "{kind} # pragma: allowlist secret"'
        text = re.sub(rf'("{key}": "[0-9a-f]{{64,}}")', rf"\1, {note}", text)
    return text


def _weights_asset(weights: WeightsFile, info: ModelInfo) -> dict[str, Any]:
    """The only asset; STAC 1.1 lets an item have bands only when an asset names them."""
    return {
        "href": f"./{WEIGHTS_NAME}",
        "title": "Weights",
        "type": "application/vnd.safetensors",
        "roles": ["mlm:model", "mlm:weights", "data"],
        "mlm:artifact_type": "safetensors.torch.save_file",
        "bands": [{"name": name} for name in (*info.bands.names, *_fine_names(info))],
        "file:size": weights.size_bytes,
        "file:checksum": SHA256_PREFIX + weights.sha256,
    }


def _place(info: ModelInfo) -> dict[str, Any]:
    """GeoJSON's geometry and bbox; without an area, STAC wants null and no bbox."""
    if info.training_area is None:
        return {"geometry": None}
    west, south, east, north = info.training_area
    # RFC 7946, 3.1.9: what crosses the antimeridian is cut there.
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [
        [[[left, south], [right, south], [right, north], [left, north], [left, south]]]
        for left, right in spans
    ]
    geometry = (
        {"type": "Polygon", "coordinates": rings[0]}
        if len(rings) == 1
        else {"type": "MultiPolygon", "coordinates": rings}
    )
    return {"bbox": list(info.training_area), "geometry": geometry}


def _times(info: ModelInfo) -> dict[str, str | None]:
    """STAC's times: a range when the scenes' dates are known, else when the model was made."""
    created = _utc(info.created)
    if info.training_period is None:
        return {"datetime": created, "created": created}
    start, end = info.training_period
    return {
        "datetime": None,
        "start_datetime": _utc(start),
        "end_datetime": _utc(end),
        "created": created,
    }


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _stac_bands(info: ModelInfo) -> list[dict[str, Any]]:
    """STAC's bands, in micrometres, those of the finer image last; unknown widths are left out."""
    rows = _stac_rows(info.bands, info.bands.names)
    if info.fine_bands is None:
        return rows
    return [*rows, *_stac_rows(info.fine_bands, _fine_names(info))]


def _stac_rows(bands: BandTable, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one image."""
    rows = []
    for name, wavelength_nm, fwhm_nm in zip(names, bands.wavelength_nm, bands.fwhm_nm, strict=True):
        row: dict[str, Any] = {
            "name": name,
            "eo:center_wavelength": round(float(wavelength_nm) / 1000, 7),
        }
        if np.isfinite(fwhm_nm):
            row["eo:full_width_half_max"] = round(float(fwhm_nm) / 1000, 7)
        rows.append(row)
    return rows


def _fine_names(info: ModelInfo) -> list[str]:
    """Names of the finer image's bands; both images may have a band 1, and STAC but one list."""
    return [] if info.fine_bands is None else [FINE_PREFIX + name for name in info.fine_bands.names]


def _mlm_fields(info: ModelInfo, weights: WeightsFile) -> dict[str, Any]:
    """The fields of the Machine Learning Model extension."""
    fields: dict[str, Any] = {
        "mlm:name": info.name,
        "mlm:architecture": info.architecture,
        "mlm:tasks": [info.task],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch.__version__,
        "mlm:total_parameters": weights.parameter_count,
        "mlm:memory_size": weights.memory_bytes,
        "mlm:input": _mlm_inputs(info),
        "mlm:output": [_mlm_output(info)],
    }
    if info.config:  # the schema wants at least one, or none of the field
        fields["mlm:hyperparameters"] = info.config
    return fields


def _mlm_inputs(info: ModelInfo) -> list[dict[str, Any]]:
    """What the model reads, in the order in which it takes them."""
    if info.fine_bands is None:
        return [_mlm_input("reflectance", "", info.bands.names, info.units)]
    where = "every pixel is as many of the fine image as the ratio squared; "
    return [
        _mlm_input("hyperspectral", f"Coarse image, {where}", info.bands.names, info.units),
        _mlm_input("multispectral", "Fine image; ", _fine_names(info), info.units),
    ]


def _mlm_input(name: str, about: str, bands: Sequence[str], units: str) -> dict[str, Any]:
    """One input: (B, C, h, w) of any height and width, not normalised."""
    return {
        "name": name,
        "description": f"{about}{units}; the model normalises it by itself.",
        "bands": list(bands),
        "input": {
            "shape": [-1, len(bands), -1, -1],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": None,
        "resize_type": None,
    }


def _mlm_output(info: ModelInfo) -> dict[str, Any]:
    """What the model returns: (B, K, h, w), one channel a class in the order of the classes.

    A model for regression returns one channel, one that fuses all bands of the coarse image; an
    encoder one an embedded number, not counted here.
    """
    name, channels, noun = "embeddings", -1, "channel"
    if info.classes:
        name, channels, noun = "probabilities", len(info.classes), "class"
    elif info.quantity is not None:
        name, channels = "values", 1
    elif info.fine_bands is not None:
        name, channels, noun = "fused", len(info.bands), "bands"
    return {
        "name": name,
        "tasks": [info.task],
        "result": {
            "shape": [-1, channels, -1, -1],
            "dim_order": ["batch", noun, "height", "width"],
            "data_type": "float32",
        },
        "classification:classes": [_stac_class(part) for part in info.classes],
    }


def _stac_class(item: ClassInfo) -> dict[str, Any]:
    """Write a class so that versions 1 and 2 of the classification extension take it.

    1 asks for a description, which holds the name for people; 2 for a name without spaces.
    """
    slug = re.sub(r"[^0-9A-Za-z_-]+", "-", item.name).strip("-").lower()
    return {
        "value": item.value,
        "name": slug or f"class-{item.value}",
        "description": item.name,
        "color_hint": item.color.removeprefix("#"),
    }


def _hyperkd_fields(info: ModelInfo) -> dict[str, Any]:
    """Our own fields: what STAC and MLM have no place for, or only in another unit."""
    quantity = {} if info.quantity is None else {"hyperkd:quantity": asdict(info.quantity)}
    fine = {} if info.fine_bands is None else {"hyperkd:fine_bands": _band_rows(info.fine_bands)}
    return {
        **quantity,
        **fine,
        "hyperkd:format_version": FORMAT_VERSION,
        "hyperkd:engine_version": info.engine_version,
        "hyperkd:units": info.units,
        "hyperkd:bands": _band_rows(info.bands),
        "hyperkd:normalisation": {"mean": info.normalisation.mean, "std": info.normalisation.std},
        "hyperkd:tiling": {
            "tile_size_px": info.tiling.tile_size_px,
            "halo_px": info.tiling.halo_px,
            "blend": info.tiling.blend,
            "align_px": info.tiling.align_px,
        },
        "hyperkd:training": info.training,
        "hyperkd:scores": {
            name: score for name, score in info.scores.items() if np.isfinite(score)
        },
        "hyperkd:attribution": info.attribution,
    }


def _band_rows(bands: BandTable) -> list[dict[str, Any]]:
    """Bands in nanometres."""
    return [
        {"name": name, "wavelength_nm": wavelength_nm, "fwhm_nm": fwhm_nm, "good": good}
        for name, wavelength_nm, fwhm_nm, good in zip(
            bands.names, bands.wavelength_nm, bands.fwhm_nm, bands.good, strict=True
        )
    ]


def _plain(value: Any) -> Any:
    """Turn arrays, numpy numbers, paths and dates into what JSON has; NaN becomes null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
