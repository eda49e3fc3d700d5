"""Classical methods and the strong start on a real cube, seen by two made sensors."""

import pytest
import rasterio
import torch

from engine.models.fusion.classical import CLASSICAL
from engine.models.fusion.degradation import PointSpread, SpectralResponse
from engine.models.fusion.injection_fit import fit_injection
from engine.models.fusion.method import ImagePair
from engine.models.fusion.noise import with_noise
from tests.engine.models.fusion.made_pairs import Known
from tests.engine.training.made_ground import whole

RATIO = 4
NOISE = 2.7e-3  # 35 dB below the signal
TM_SHARES = ((0.03, 0.07), (0.07, 0.11), (0.12, 0.15), (0.18, 0.25))  # of 0.4 to 2.5 µm


@pytest.fixture(scope="module")
def cube():
    """Jasper Ridge as (1, L, 100, 100) reflectance."""

    def read(folder):
        with rasterio.open(folder / "jasper_ridge/derived/jasper_hsi.tif") as dataset:
            return torch.from_numpy(dataset.read() / 1e4).float()[None]

    return read


@pytest.fixture
def scores(data_folder, cube, one_thread):
    """Name → (PSNR in dB, spectral angle in degrees) on the half that no target was shown of."""
    image = cube(data_folder)
    spread = PointSpread.gaussian(RATIO)
    hsi = with_noise(spread.degrade(image), torch.full(image.shape[1:2], NOISE), seed=0)
    seen = _boxes(image.shape[1])
    msi = seen(image)
    pair = ImagePair(hsi, msi, whole(hsi), whole(msi))
    physics = type("Physics", (), {"ratio": RATIO, "spread": spread, "response": seen})
    lower = slice(12 * RATIO, None)
    seen_ground = whole(msi)
    seen_ground[:, lower] = False
    methods = {name: fit([pair], physics) for name, fit in CLASSICAL.items()}
    methods["injection"] = fit_injection([Known(pair, image, seen_ground)], spread=spread)
    return {
        name: _scores(method(pair)[..., lower, :], image[..., lower, :])
        for name, method in methods.items()
    }


def _boxes(bands):
    weights = torch.zeros(len(TM_SHARES), bands)
    for row, (low, high) in enumerate(TM_SHARES):
        inside = slice(round(low * bands), round(high * bands))
        weights[row, inside] = 1 / (inside.stop - inside.start)
    return SpectralResponse(weights)


def _scores(result, target):
    result, target = result[0].flatten(1), target[0].flatten(1)
    peak, error = target.amax(1), (result - target).square().mean(1)
    psnr_db = 10 * torch.log10(peak**2 / error)
    cosine = torch.cosine_similarity(result, target, dim=0)
    return float(psnr_db.mean()), float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).mean())


def test_methods_rank_as_they_should(scores):
    psnr_db = {name: score[0] for name, score in scores.items()}
    angle = {name: score[1] for name, score in scores.items()}
    classical = set(CLASSICAL)
    assert all(psnr_db[name] > psnr_db["bicubic"] + 4 for name in classical - {"bicubic"})
    assert psnr_db["glphs"] > psnr_db["gsa"]
    assert psnr_db["injection"] > max(psnr_db[name] for name in classical) + 1
    assert angle["injection"] < min(angle[name] for name in classical)
