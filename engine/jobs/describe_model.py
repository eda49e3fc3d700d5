"""describe_model: what a model is, as a page, and how its bands are found in a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from engine.errors import BandMatchError, BandTableError
from engine.feedback import Feedback
from engine.jobs.request import JobRequest
from engine.packages.metadata import ModelInfo
from engine.packages.package import ModelPackage, load_package
from engine.raster.scene import open_scene
from engine.raster.spectra import BandTable, MatchRow, match_bands
from engine.report import figure_to_data_uri, format_figures, new_figure, render_report

# Bands further apart than this many times their usual distance do not belong to one line.
GAP_FACTOR = 4
# Curves of a whole training are for its own report.
MOST_SHOWN = 12


class Request(JobRequest):
    """The parameters: a model, and perhaps a scene to match its bands to."""

    model: str
    input: str | list[str] | None = None
    bands: str | None = None
    report: str


@dataclass(frozen=True)
class _Match:
    """How the model's bands were found in a scene, also when they were not.

    Args:
        scene_name: for people.
        rows: one a model band; none when the scene has no wavelengths.
        refusal: why the scene cannot be used; empty when it can.
        notes: what was assumed.
    """

    scene_name: str
    rows: tuple[MatchRow, ...]
    refusal: str
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many bands each action was taken for."""
        actions = [row.action for row in self.rows]
        return {action: actions.count(action) for action in ("same", "resampled", "too far")}


def describe_model(request: Request, feedback: Feedback) -> dict[str, Any]:
    """Write a page about a model: bands, classes, origin, scores; with a scene, the band match.

    A scene that does not fit is an answer, not a failure: the page says why.

    Returns:
        ``report``, and ``name``, ``classes`` and ``bands`` (counts), ``sha256`` of the weights.

    Raises:
        PackageError: the model cannot be loaded.
        SceneError: the scene cannot be opened.
        OutputError: the report cannot be written.
    """
    feedback.progress(0.0, "Loading the model")
    package = load_package(request.model)
    match = None
    if request.input is not None:
        feedback.progress(0.4, "Matching the bands")
        match = _match_scene(package.info, request.input, request.bands, feedback)
    feedback.raise_if_cancelled()
    feedback.progress(0.6, "Writing the report")
    report = render_report(
        "describe_model.html",
        request.report,
        info=package.info,
        package=package,
        facts=_facts(package),
        bands=_band_rows(package.info),
        fine_bands=_fine_rows(package.info.fine_bands),
        spectrum=figure_to_data_uri(_spectrum_figure(package.info)),
        training=_flat(package.info.training),
        match=match,
    )
    feedback.progress(1.0, "Done")
    return {
        "report": str(report),
        "name": package.info.name,
        "classes": len(package.info.classes),
        "bands": len(package.info.bands),
        "sha256": package.sha256,
    }


def _match_scene(
    info: ModelInfo, source: str | list[str], bands_csv: str | None, feedback: Feedback
) -> _Match:
    """Match the model's bands to the scene's, and keep the refusal when there is one."""
    scene = open_scene(source, bands_csv)
    for note in scene.notes:
        feedback.warning(note)
    try:
        match = match_bands(info.bands, scene.require_bands())
    except BandMatchError as error:
        feedback.warning(error.sentence)
        return _Match(scene.name, error.rows, error.sentence, scene.notes)
    except BandTableError as error:
        feedback.warning(str(error))
        return _Match(scene.name, (), str(error), scene.notes)
    feedback.info(match.table())
    return _Match(scene.name, match.rows, "", (*scene.notes, *match.notes))


def _facts(package: ModelPackage) -> list[tuple[str, str]]:
    """Name and text of what stands about a model in two columns."""
    info = package.info
    parameter_count = sum(tensor.numel() for tensor in package.state.values())
    facts = [
        ("Name", info.name),
        ("Version", info.version),
        ("Task", info.task),
        ("Estimates", "" if info.quantity is None else info.quantity.label),
        ("Trained on values", _range_text(info)),
        ("Fuses", _fusion_text(info)),
        ("Encoder", _encoder_text(info)),
        *_backbone_facts(info),
        ("Architecture", f"{info.architecture}, {parameter_count:,} parameters"),
        ("Input", f"{info.units}, normalised by the model"),
        ("Tiles", _tiling_text(info)),
        ("Confidence", _confidence_text(package.parts.temperature)),
        ("Support", "" if package.parts.support is None else "can be mapped"),
        ("Licence", info.licence),
        ("Attribution", info.attribution),
        ("Training area", _area_text(info)),
        ("Training scenes from", _period_text(info)),
        ("Made", f"{info.created:%d %B %Y}"),
        ("Made with engine", info.engine_version),
        ("Package", str(package.path)),
        ("SHA-256 of the weights", package.sha256),
    ]
    return [(name, text) for name, text in facts if text]


def _range_text(info: ModelInfo) -> str:
    """The range of the training values, outside of which a model of a quantity guesses."""
    if info.quantity is None:
        return ""
    quantity = info.quantity
    unit = f" {quantity.unit}" if quantity.unit else ""
    return f"{format_figures(quantity.low)} to {format_figures(quantity.high)}{unit}"


def _fusion_text(info: ModelInfo) -> str:
    """Which two images a model needs, and how much finer than the one the other has to be."""
    if info.fine_bands is None:
        return ""
    return (
        f"an image of {len(info.bands)} bands with one of {len(info.fine_bands)} whose pixels are "
        f"{info.ratio} times finer"
    )


def _encoder_text(info: ModelInfo) -> str:
    """Size of an encoder that is a package of its own; of others it is among the settings."""
    if info.architecture != "hyperkd-backbone":
        return ""
    config = info.config
    return (
        f"{config['depth']} blocks of width {config['embed_dim']}, tokens of {config['patch_px']} "
        f"px, trained on tiles of {config['tile_size_px']} px"
    )


def _backbone_facts(info: ModelInfo) -> list[tuple[str, str]]:
    """Whose backbone a model stands on that does not hold it; of others, nothing."""
    backbone = info.config.get("foundation")
    if backbone is None:
        return []
    return [
        ("Backbone", f"{backbone['name']} ({backbone['kind']}), which is not in the package"),
        ("Backbone's licence", backbone["licence"]),
        ("Backbone from", backbone["source"]),
        ("Backbone's SHA-256", backbone["sha256"]),
    ]


def _tiling_text(info: ModelInfo) -> str:
    tiling = info.tiling
    how = "blended over" if tiling.blend else "read with"
    of_what = "" if info.fine_bands is None else " of the coarse image"
    return f"{tiling.tile_size_px} px{of_what}, {how} a margin of {tiling.halo_px} px"


def _confidence_text(temperature: float) -> str:
    """How confidence was calibrated, if it was."""
    return "" if temperature == 1 else f"calibrated by a temperature of {temperature:.2f}"


def _area_text(info: ModelInfo) -> str:
    """The bounding box with hemispheres, as on a map."""
    if info.training_area is None:
        return ""
    west, south, east, north = info.training_area
    return f"{_longitude(west)} to {_longitude(east)}, {_latitude(south)} to {_latitude(north)}"


def _longitude(degrees: float) -> str:
    return f"{abs(degrees):.3f}° {'W' if degrees < 0 else 'E'}"


def _latitude(degrees: float) -> str:
    return f"{abs(degrees):.3f}° {'S' if degrees < 0 else 'N'}"


def _period_text(info: ModelInfo) -> str:
    if info.training_period is None:
        return ""
    start, end = (f"{time:%d %B %Y}" for time in info.training_period)
    return start if start == end else f"{start} to {end}"


def _band_rows(info: ModelInfo) -> list[dict[str, Any]]:
    """One row a band: number (1-based), name, centre, width, mean and spread of the training."""
    bands, normalisation = info.bands, info.normalisation
    return [
        {
            "number": band_index + 1,
            "name": bands.names[band_index],
            "wavelength_nm": float(bands.wavelength_nm[band_index]),
            "fwhm_nm": float(bands.fwhm_nm[band_index]),
            "mean": float(normalisation.mean[band_index]),
            "std": float(normalisation.std[band_index]),
        }
        for band_index in range(len(bands))
    ]


def _fine_rows(bands: BandTable | None) -> list[dict[str, Any]]:
    """One row a band of the finer image that a model of two images reads."""
    if bands is None:
        return []
    return [
        {"number": number, "name": name, "wavelength_nm": wavelength_nm, "fwhm_nm": fwhm_nm}
        for number, (name, wavelength_nm, fwhm_nm) in enumerate(
            zip(bands.names, bands.wavelength_nm, bands.fwhm_nm, strict=True), start=1
        )
    ]


def _spectrum_figure(info: ModelInfo) -> Figure:
    """Draw the mean spectrum of the training pixels, with one spread either side."""
    order = np.argsort(info.bands.wavelength_nm, kind="stable")
    wavelength_nm = info.bands.wavelength_nm[order]
    mean, std = info.normalisation.mean[order], info.normalisation.std[order]
    figure, axes = new_figure(8.0, 3.2)
    marker = "o" if len(wavelength_nm) < 40 else ""
    for part in np.split(np.arange(len(order)), _gap_starts(wavelength_nm)):
        axes.fill_between(
            wavelength_nm[part], (mean - std)[part], (mean + std)[part], color="#0b6e6e22"
        )
        axes.plot(wavelength_nm[part], mean[part], color="#0b6e6e", marker=marker, markersize=4)
    axes.set_xlabel("wavelength (nm)")
    axes.set_ylabel(info.units)
    return figure


def _gap_starts(wavelength_nm: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Find where a line through (C,) ascending centres must break: the bands left out between."""
    steps_nm = np.diff(wavelength_nm)
    if len(steps_nm) == 0:
        return np.array([], dtype=np.intp)
    return np.flatnonzero(steps_nm > GAP_FACTOR * np.median(steps_nm)) + 1


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Write nested settings as pairs of a dotted name and a text."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            shown = [str(part) for part in value[:MOST_SHOWN]]
            pairs.append((prefix + name, ", ".join(shown) + ", …" * (len(value) > MOST_SHOWN)))
        else:
            pairs.append((prefix + name, "" if value is None else str(value)))
    return pairs
