"""Which method fuses a pair: a package that is made for its bands and ratio, or a classical one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.errors import BandMatchError, PackageError, RequestError
from engine.feedback import Feedback
from engine.jobs.shared.pairs import ReadyPair
from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.method import FusionMethod, ImagePair
from engine.packages.cache import load_model
from engine.packages.installed import list_packages
from engine.packages.metadata import ModelInfo
from engine.packages.package import ModelPackage, load_info
from engine.raster.spectra import BandMatch, BandTable, match_bands

Method = Literal["csakd", "bicubic", "gsa", "glphs", "cnmf"]

LEARNT: Method = "csakd"
# Without a package that fits: the best of the classical methods on most pairs, and a fast one.
FALLBACK: Method = "glphs"
AUTOMATIC = "auto"
TITLES: dict[str, str] = {
    "csakd": "CSAKD",
    "bicubic": "Bicubic interpolation",
    "gsa": "GSA",
    "glphs": "MTF-GLP-HS",
    "cnmf": "CNMF",
}

# Of the scene's usable bands, how many a package must sharpen to be one for this scene.
MIN_COVERED = 0.8


@dataclass(frozen=True, eq=False)
class BandRoute:
    """How a method's bands are made of those that are read, and where its results go.

    Args:
        hsi_weights: (P, U) of the method's hyperspectral bands in the U usable ones; None when
            they are the same, in the same order.
        msi_index: the method's M multispectral bands among those that are read.
        place: (U,) which of the method's bands each usable band is; -1: none.
        table: the match in words; empty when nothing was matched.
    """

    hsi_weights: NDArray[np.float32] | None
    msi_index: tuple[int, ...]
    place: NDArray[np.int64]
    table: str = ""

    @classmethod
    def direct(cls, hsi_count: int, msi_count: int) -> BandRoute:
        """The method's bands are those that are read."""
        return cls(None, tuple(range(msi_count)), np.arange(hsi_count))

    @property
    def covered(self) -> float:
        """Share of the usable bands that the method sharpens."""
        return float((self.place >= 0).mean())


@dataclass(frozen=True, eq=False)
class ChosenMethod:
    """A method that fits a pair.

    Args:
        name: of `Method`; "csakd" for every package.
        title: for people.
        why: it was chosen, one sentence; empty when it was asked for.
        method: on the device, in eval mode.
        route: from the pair's bands to the method's.
        package: it came from; None for a classical one.
    """

    name: Method
    title: str
    why: str
    method: FusionMethod
    route: BandRoute
    package: ModelPackage | None = None


def wanted_ratio(method: Method, model: str, ratio: int | None) -> int | None:
    """The ratio of the package that was asked for; before the images are brought onto grids.

    Args:
        method: that was asked for.
        model: a package, or `AUTOMATIC`.
        ratio: that was asked for; None: any.

    Raises:
        PackageError: the package cannot be loaded, does not fuse, or is for another ratio.
        RequestError: a package and a classical method were asked for.
    """
    if model == AUTOMATIC:
        return ratio
    if method != LEARNT:
        raise RequestError(
            f"The method {method!r} needs no model, but the model {model!r} was chosen.",
            f"Choose the method {LEARNT!r}, or the model {AUTOMATIC!r}.",
        )
    info = load_info(model)
    if info.task != "super-resolution":
        raise PackageError(
            f"The model {info.name!r} does not fuse two images; it is for {info.task}.",
            "Choose a model that 'Train a fusion' made, or a classical method.",
        )
    if ratio is not None and ratio != info.ratio:
        raise PackageError(
            f"The model {info.name!r} is made for a ratio of {info.ratio}, not of {ratio}.",
            f"Choose the ratio {info.ratio}, train a model for {ratio}, or choose a classical "
            "method.",
        )
    return info.ratio


def choose_method(
    method: Method, model: str, ready: ReadyPair, device: torch.device, feedback: Feedback
) -> ChosenMethod:
    """Load the package that fits, or fit a classical method to the sample.

    Args:
        method: that was asked for.
        model: a package, or `AUTOMATIC`: any installed one that fits, else a classical method.
        ready: the pair.
        device: to run on.
        feedback: told what was chosen, and why.

    Raises:
        PackageError: the package that was asked for is for other bands.
    """
    if method != LEARNT:
        return _classical(method, "", ready, device)
    if model != AUTOMATIC:
        return _packaged(model, _route(load_info(model), ready), "", device, feedback)
    for name in _fusion_packages():
        info = load_info(name)
        if info.ratio != ready.pair.ratio:
            continue
        try:
            route = _route(info, ready)
        except PackageError as error:
            feedback.info(f"{error.sentence}")
            continue
        why = f"The installed model {info.name!r} is made for these bands and this ratio."
        return _packaged(name, route, why, device, feedback)
    why = (
        f"No installed model is made for these bands at a ratio of {ready.pair.ratio}: the "
        f"classical method {TITLES[FALLBACK]} is used."
    )
    feedback.warning(why)
    return _classical(FALLBACK, why, ready, device)


def fit_classical(name: str, sample: Sequence[ImagePair], ready: ReadyPair) -> FusionMethod:
    """Fit a classical method to a sample of the pair."""
    return CLASSICAL[name](sample, ready.physics).eval()


def _classical(method: Method, why: str, ready: ReadyPair, device: torch.device) -> ChosenMethod:
    fitted = fit_classical(method, ready.sample, ready).to(device)
    first = ready.sample[0]
    route = BandRoute.direct(first.hsi.shape[1], first.msi.shape[1])
    return ChosenMethod(method, TITLES[method], why, fitted, route)


def _packaged(
    name: str, route: BandRoute, why: str, device: torch.device, feedback: Feedback
) -> ChosenMethod:
    loaded = load_model(name, device)
    info = loaded.package.info
    feedback.info(f"Model: {info.title}, version {info.version} (SHA-256 {loaded.package.sha256})")
    if route.table:
        feedback.info(f"Bands of the model in the images:\n{route.table}")
    method = cast(FusionMethod, loaded.module)  # so says its task
    return ChosenMethod(LEARNT, TITLES[LEARNT], why, method, route, loaded.package)


def _fusion_packages() -> list[str]:
    return [package.name for package in list_packages() if package.task == "super-resolution"]


def _route(info: ModelInfo, ready: ReadyPair) -> BandRoute:
    """Find a package's bands in both images, by wavelength.

    Raises:
        PackageError: the images do not have them; the message holds the table.
    """
    fine_bands = cast(BandTable, info.fine_bands)  # a package that fuses has them
    sample = ready.sample[0]
    hsi = _match(info, info.bands, ready.hsi_bands, sample.hsi.shape[1], ready.pair.hsi.name)
    msi = _match(info, fine_bands, ready.msi_bands, sample.msi.shape[1], ready.pair.msi.name)
    if msi is not None and msi.weights is not None:
        raise _other_bands(info, ready.pair.msi.name, msi.table())
    count = sample.hsi.shape[1]
    tables = [match.table() for match in (hsi, msi) if match is not None]
    route = BandRoute(
        hsi_weights=None if hsi is None else _weights(hsi, count),
        msi_index=tuple(range(len(fine_bands))) if msi is None else msi.scene_band_index,
        place=np.arange(count) if hsi is None else _places(hsi, count),
        table="\n".join(tables),
    )
    if route.covered < MIN_COVERED:
        raise PackageError(
            f"The model {info.name!r} sharpens {route.covered:.0%} of the {count} usable bands of "
            f"{ready.pair.hsi.name}.",
            f"Choose a model for this sensor, or a classical method.\n{route.table}",
        )
    return route


def _match(
    info: ModelInfo, wanted: BandTable, found: BandTable | None, count: int, name: str
) -> BandMatch | None:
    """Find bands by wavelength; without wavelengths, take as many as there should be in order.

    Raises:
        PackageError: they are not there.
    """
    if found is None:
        if count == len(wanted):
            return None
        raise PackageError(
            f"The model {info.name!r} reads {len(wanted)} bands; {name} has {count}, without "
            "wavelengths.",
            "Give a band table, choose a model for these images, or a classical method.",
        )
    try:
        return match_bands(wanted, found)
    except BandMatchError as error:
        raise _other_bands(info, name, error.remedy.partition("\n")[2]) from error


def _other_bands(info: ModelInfo, name: str, table: str) -> PackageError:
    return PackageError(
        f"The model {info.name!r} is made for other bands than those of {name}.",
        f"Choose a model for this sensor, or a classical method.\n{table}",
    )


def _weights(match: BandMatch, count: int) -> NDArray[np.float32] | None:
    """(P, U) of the package's bands in the usable ones; None when they are the same."""
    index = list(match.scene_band_index)
    if match.weights is None and index == list(range(count)):
        return None
    weights = np.zeros((len(match.rows), count), np.float32)
    weights[:, index] = np.eye(len(index), dtype=np.float32) if match.weights is None else (
        match.weights
    )  # fmt: skip
    return weights


def _places(match: BandMatch, count: int) -> NDArray[np.int64]:
    """(U,) the package's band that each usable band is; -1 where it is made of several, or none."""
    place = np.full(count, -1, np.int64)
    weights = _weights(match, count)
    weights = np.eye(count, dtype=np.float32) if weights is None else weights
    for number, row in enumerate(match.rows):
        if row.action == "same":
            band = int(weights[number].argmax())
            place[band] = number if place[band] < 0 else place[band]
    return place


class RoutedMethod(nn.Module):
    """A method behind its route: reads the usable bands of a pair, gives the same bands back.

    Bands that the method does not know come back as NaN.

    Args:
        chosen: method and route, on their device.
    """

    def __init__(self, chosen: ChosenMethod) -> None:
        super().__init__()
        self.method = chosen.method
        self._msi_index = list(chosen.route.msi_index)
        device = next((t.device for t in chosen.method.state_dict().values()), torch.device("cpu"))
        weights = chosen.route.hsi_weights
        self._weights = None if weights is None else torch.from_numpy(weights).to(device)
        place = torch.from_numpy(chosen.route.place).to(device)
        self._known = place >= 0
        self._place = place[self._known]
        self._all_in_order = bool(self._known.all()) and torch.equal(
            self._place.cpu(), torch.arange(len(place))
        )

    def forward(self, pair: ImagePair) -> Tensor:
        """(B, U, h, w) to (B, U, h*r, w*r)."""
        result: Tensor = self.method(self.inner(pair))
        if self._all_in_order and result.shape[1] == len(self._known):
            return result
        b, _, h, w = result.shape
        routed = result.new_full((b, len(self._known), h, w), torch.nan)
        routed[:, self._known] = result[:, self._place]
        return routed

    def inner(self, pair: ImagePair) -> ImagePair:
        """The pair in the method's bands."""
        hsi, msi = pair.hsi, pair.msi
        if self._weights is not None:
            hsi = torch.einsum("pu,buhw->bphw", self._weights, hsi)
        if self._msi_index != list(range(msi.shape[1])):
            msi = msi[:, self._msi_index]
        return ImagePair(hsi, msi, pair.hsi_valid, pair.msi_valid)
