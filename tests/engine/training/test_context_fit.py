import pytest
import torch
from lightning_fabric import Fabric

from engine.errors import CancelledError
from engine.feedback import SilentFeedback
from engine.models.classifier import ClassifierConfig
from engine.training.context_fit import ContextSettings, EncoderStart, fit_context
from engine.training.heads_fit import HeadsSettings, fit_heads
from engine.training.spectral_fit import SpectralSettings, fit_spectral_path
from tests.engine.training.made_samples import BANDS, CHIP_PX, made_samples
from tests.engine.training.test_spectral_fit import Recorder, pixels_of

CONFIG = ClassifierConfig(
    in_channels=BANDS, num_classes=3, chip_px=CHIP_PX, halo_px=1, embed_dim=8, depth=1,
    num_heads=2, head_channels=4, patch_px=2, heads=2, heads_hidden=8,
)  # fmt: skip
QUICK = ContextSettings(epochs=2, check_epochs=1, batch_px=4 * CHIP_PX**2)


def heads_of(samples, pixels, spectral):
    return fit_heads(
        pixels, samples.place, spectral, HeadsSettings(epochs=2, check_epochs=1),
        members=2, hidden=8, seed=0, feedback=SilentFeedback(),
    )  # fmt: skip


def fit(seed=0, start=None, settings=QUICK, feedback=None):
    samples = made_samples(chips=9)
    pixels = pixels_of(samples, folds=2)
    spectral = fit_spectral_path(pixels, SpectralSettings(epochs=10), 0, SilentFeedback())
    fabric = Fabric(accelerator="cpu", devices=1)
    found = fit_context(
        samples, pixels, spectral, heads_of(samples, pixels, spectral), CONFIG, settings,
        start=start, seed=seed, fabric=fabric, feedback=feedback or SilentFeedback(),
    )  # fmt: skip
    return found, spectral


def test_the_same_seed_gives_the_same_encoder():
    first, again, other = (fit(seed)[0].model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.cls_token"], other["encoder.cls_token"])


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    fit()
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))


def test_the_linear_path_of_the_model_is_the_one_that_was_fitted():
    found, spectral = fit()
    assert torch.equal(found.model.spectral.weight, spectral.path.weight)
    assert not found.model.training


def test_every_gate_is_tried_at_every_check():
    found, _spectral = fit()
    assert {(score.epoch, score.gate) for score in found.choice.tried} == {
        (epoch, gate) for epoch in (1, 2) for gate in (0.25, 0.5, 1.0)
    }


@pytest.fixture
def trained_encoder():
    weights = {name: t.clone() for name, t in fit()[0].model.encoder.state_dict().items()}
    return weights | {"band_mean": torch.full((BANDS,), 0.123)}


def test_an_encoder_to_begin_with_keeps_its_normalisation(trained_encoder):
    found, _spectral = fit(seed=3, start=EncoderStart(trained_encoder))
    assert torch.equal(found.model.encoder.band_mean, trained_encoder["band_mean"])


def test_an_encoder_to_begin_with_is_trained_on(trained_encoder):
    found, _spectral = fit(seed=3, start=EncoderStart(trained_encoder))
    now = found.model.encoder.state_dict()["blocks.0.attn.qkv.weight"]
    before = trained_encoder["blocks.0.attn.qkv.weight"]
    assert not torch.equal(now, before)
    torch.testing.assert_close(now, before, atol=0.01, rtol=0)


def test_a_frozen_encoder_stays_as_it_is_to_the_bit(trained_encoder):
    found, _spectral = fit(seed=3, start=EncoderStart(trained_encoder, frozen=True))
    now = found.model.encoder.state_dict()
    assert now.keys() == trained_encoder.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in trained_encoder.items())
    assert found.model.head.classes.weight.abs().max() > 0


def test_cancel_is_heard_between_batches():
    with pytest.raises(CancelledError):
        fit(feedback=Recorder(cancel_after=2))


@pytest.mark.slow
def test_held_out_places_open_the_gate_when_the_neighbourhood_tells_the_class():
    """The class of a pixel is the brightness of its neighbour: no spectrum shows it."""
    generator = torch.Generator().manual_seed(0)
    samples = made_samples(chips=40, classes=2)
    signal = torch.randint(0, 2, (40, CHIP_PX, CHIP_PX), generator=generator)
    noise = 0.01 * torch.randn(40, BANDS, CHIP_PX, CHIP_PX, generator=generator)
    samples.reflectance.copy_(0.3 + 0.2 * signal[:, None] + noise)
    sides = torch.stack(
        [signal.roll(1, 1), signal.roll(-1, 1), signal.roll(1, 2), signal.roll(-1, 2)]
    )
    label = (sides.sum(dim=0) >= 2).long()[samples.chip, samples.row, samples.col]
    samples.shares.copy_(torch.eye(2)[label])
    samples.pure.fill_(True)
    pixels = pixels_of(samples, folds=2)
    spectral = fit_spectral_path(pixels, SpectralSettings(epochs=10), 0, SilentFeedback())
    config = ClassifierConfig(
        in_channels=BANDS, num_classes=2, chip_px=CHIP_PX, halo_px=1, embed_dim=16, depth=1,
        num_heads=2, head_channels=16, patch_px=1, heads=2, heads_hidden=8,
    )  # fmt: skip
    found = fit_context(
        samples, pixels, spectral, heads_of(samples, pixels, spectral), config,
        ContextSettings(epochs=30, check_epochs=10, batch_px=4 * CHIP_PX**2, lr=1e-2, dropout=0.0),
        start=None, seed=0, fabric=Fabric(accelerator="cpu", devices=1),
        feedback=SilentFeedback(),
    )  # fmt: skip
    assert found.choice.gate > 0
    assert found.model.config.encoder_gate == found.choice.gate
    best = min(found.choice.tried, key=lambda tried: tried.loss)
    assert best.accuracy > found.choice.without[1] + 0.1
