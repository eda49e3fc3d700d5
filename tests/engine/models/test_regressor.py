import numpy as np
import pytest
import torch

from engine.models.regressor import HyperKDRegressor, RegressorConfig

BANDS = 6
SMALL = {"chip_px": 8, "halo_px": 1, "embed_dim": 8, "depth": 1, "num_heads": 2,
         "head_channels": 4, "heads": 2, "heads_hidden": 8}  # fmt: skip


def regressor(**settings):
    """A small regressor in which every weight does something."""
    torch.manual_seed(0)
    model = HyperKDRegressor(RegressorConfig(BANDS, **(SMALL | settings)))
    torch.nn.init.normal_(model.spectral.weight)
    torch.nn.init.normal_(model.head.classes.weight)
    return model.eval()


def chips(batch=2, height=7, width=5):
    generator = torch.Generator().manual_seed(0)
    reflectance = torch.rand(batch, BANDS, height, width, generator=generator)
    return reflectance, torch.ones(batch, height, width, dtype=torch.bool)


@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8)])
def test_any_size_gives_one_value_for_each_pixel(gate, size):
    with torch.inference_mode():
        values = regressor(encoder_gate=gate, heads_share=0.5)(*chips(2, *size))
    assert values.shape == (2, 1, *size)
    assert values.isfinite().all()


def test_answers_in_standard_units_become_values_in_the_unit():
    standard, scaled = regressor(), regressor(value_mean=20.0, value_std=4.0)
    with torch.inference_mode():
        torch.testing.assert_close(scaled(*chips()), standard(*chips()) * 4.0 + 20.0)


def test_a_logarithm_that_was_learned_is_undone():
    model = regressor(value_mean=1.0, value_std=0.5, log1p=True)
    answers = torch.tensor([-1.0, 0.0, 2.0])
    expected = np.expm1(np.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(model.to_unit(answers).numpy(), expected, rtol=1e-6)


def test_values_beyond_the_training_range_are_not_cut_off():
    model = regressor(value_mean=0.5, value_std=1.0)
    assert model.to_unit(torch.tensor([-7.0, 7.0])).tolist() == [-6.5, 7.5]


def test_without_the_encoder_no_pixel_sees_another():
    model, seeing = regressor(), regressor(encoder_gate=1.0)
    assert (model.reach_px, model.halo_px, model.blend) == (0, 0, False)
    assert (seeing.reach_px, seeing.halo_px, seeing.blend) == (8, 1, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_std": 0.0}, "spread of the training values is 0.0"),
        ({"value_std": float("nan")}, "spread of the training values is nan"),
        ({"value_mean": float("inf")}, "mean of the training values is inf"),
        ({"encoder_gate": 1.5}, "gate"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RegressorConfig(BANDS, **settings)
