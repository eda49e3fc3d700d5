"""Galileo against numbers of the public code, by the packaged weights: every file of the fixtures.

Sizes are read off the files; the tolerances are those that come with them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.models.galileo import GalileoEncoder
from engine.models.galileo_embedding import axis_code, kernel_resizing, month_table, place_codes
from engine.models.galileo_inputs import (
    SENTINEL2_GROUP_INDEX,
    SPACE_TIME_GROUPS,
    GalileoInputs,
    PerKind,
)
from engine.packages.teachers import load_teacher

pytestmark = pytest.mark.parity

PACKAGE = Path(__file__).parents[3] / "resources" / "models" / "galileo-nano"
KINDS = ("space_time", "space", "time", "static")
CASES = (
    "all_t2_p4",
    "real_slovenia_p4",
    "real_slovenia_p8",
    "s2_partial_t1_p4",
    "s2_t1_p1",
    "s2_t1_p2_res30",
    "s2_t1_p4",
    "s2_t1_p5_res15",
    "s2_t1_p8",
    "s2_t3_p4",
    "s2ndvi_t1_p4",
)
ATOL_PROJECTION = 2e-5
ATOL_BLOCK = 2e-3
ATOL_OUT = 2e-4
ATOL_PATCH_MEAN = 3e-5
ATOL_GLOBAL_MEAN = 1e-5
# Tables and kernels have no tolerance of their own: ten roundings of their largest value.
RTOL_TABLE = 1e-6


def read_arrays(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def encoder() -> GalileoEncoder:
    return load_teacher(str(PACKAGE)).network


@pytest.fixture(scope="module", params=CASES)
def reference(request, fixtures_folder):
    return read_arrays(fixtures_folder / "teachers" / f"galileo_{request.param}.npz")


@pytest.fixture(scope="module")
def tables(fixtures_folder):
    return read_arrays(fixtures_folder / "teachers" / "galileo_tables.npz")


def pixel_size_m(reference) -> torch.Tensor:
    return torch.full((len(reference["in_months"]),), float(reference["input_resolution_m"]))


@pytest.fixture(scope="module")
def inputs(reference) -> GalileoInputs:
    return GalileoInputs(
        values=PerKind(*(reference[f"in_{kind}_x"] for kind in KINDS)),
        masks=PerKind(*(reference[f"in_{kind}_mask"] for kind in KINDS)),
        months=reference["in_months"],
        patch_px=int(reference["patch_size"]),
        pixel_size_m=pixel_size_m(reference),
    )


@pytest.fixture(scope="module")
def output(encoder, inputs):
    with torch.no_grad():
        return encoder(inputs, blocks=tuple(range(1, encoder.depth + 1)))


def by_kind(tensors: PerKind) -> dict[str, torch.Tensor]:
    return dict(zip(KINDS, tensors.parts(), strict=True))


def close(found: torch.Tensor, expected: torch.Tensor, atol: float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=rtol)


def test_projections(encoder, inputs, reference):
    with torch.no_grad():
        found = by_kind(encoder.project(inputs.values, inputs.patch_px))
    compared = 0
    for kind, tokens in found.items():
        hidden = reference[f"tokmask_{kind}"] >= 1
        groups = ~hidden.flatten(0, -2).all(dim=0)  # the file has zeros for the others
        close(tokens[..., groups, :], reference[f"proj_{kind}"][..., groups, :], ATOL_PROJECTION)
        compared += int(groups.sum())
    assert compared > 0


def test_token_masks(output, reference):
    for kind, visible in by_kind(output.visible).items():
        assert torch.equal(visible, reference[f"tokmask_{kind}"] < 1)


def test_blocks(output, reference):
    compared = 0
    for number, block in enumerate(output.blocks, start=1):
        for kind, tokens in by_kind(block).items():
            name = f"block{number}_{kind}"
            if name in reference:
                close(tokens, reference[name], ATOL_BLOCK)
                compared += 1
    assert compared >= len(KINDS)


def test_tokens(output, reference):
    for kind, tokens in by_kind(output.tokens).items():
        close(tokens, reference[f"out_{kind}"], ATOL_OUT)


def test_patch_means(output, reference):
    close(output.patch_mean(), reference["patch_mean"], ATOL_PATCH_MEAN)
    close(output.patch_mean(), reference["f64_patch_mean"], ATOL_PATCH_MEAN)


def test_global_means(output, reference):
    close(output.global_mean(), reference["global_mean"], ATOL_GLOBAL_MEAN)
    close(output.global_mean(), reference["f64_global_mean"], ATOL_GLOBAL_MEAN)


def test_features_of_sentinel2_alone_are_the_patch_means(encoder, reference):
    masks = reference["in_space_time_mask"]
    only_sentinel2 = torch.ones(len(SPACE_TIME_GROUPS))
    only_sentinel2[list(SENTINEL2_GROUP_INDEX)] = 0
    is_plain = masks.shape[3] == 1 and bool((masks == only_sentinel2).all())
    if not is_plain or not bool(reference["in_static_mask"].all()):
        pytest.skip("more or less than one date of all ten bands is visible here")
    reflectance = reference["s2_dn"][:, :, :, 0].permute(0, 3, 1, 2) / 1e4
    side = reflectance.shape[-1] // int(reference["patch_size"])
    [found] = encoder.features(
        reflectance,
        rows=side,
        cols=side,
        ids_keep=None,
        pixel_size_m=pixel_size_m(reference),
        taps=(encoder.depth,),
        months=reference["in_months"][:, 0],
    )
    close(found, reference["patch_mean"], ATOL_PATCH_MEAN)


def test_kernel_resizing(tables):
    names = [name for name in tables if name.startswith("pinv_")]
    assert names
    for name in names:
        from_px, to_px = (int(number) for number in re.findall(r"\d+", name))
        expected = tables[name]
        close(kernel_resizing(from_px, to_px), expected, RTOL_TABLE * float(expected.abs().max()))


def test_resized_kernels(encoder, tables):
    names = [name for name in tables if name.startswith("kernel_")]
    assert names
    for name in names:
        group, patch_px = re.fullmatch(r"kernel_(\w+)_p(\d+)", name).groups()
        with torch.no_grad():
            kernel = encoder.space_time_embed[group].kernel(int(patch_px))
        close(kernel, tables[name], 1e-5)


def test_positions_in_space(tables):
    names = [name for name in tables if name.startswith("spatial_pos_")]
    assert names
    for name in names:
        side, ratio = (int(number) for number in re.findall(r"\d+", name))
        expected = tables[name]
        size_m = torch.tensor([10.0 * ratio])
        [found] = place_codes(side, side, expected.shape[-1], size_m)
        close(found, expected, 1e-5)


def test_tables_of_months_and_dates(encoder, tables):
    months, dates = tables["month_table"], tables["pos_table"]
    close(encoder.month_embed.weight, months, 0.0)
    close(encoder.pos_embed, dates, 0.0)
    close(month_table(months.shape[1]), months, 1e-5)
    close(axis_code(torch.arange(len(dates)), dates.shape[1]), dates, 1e-5)


def test_normalisation(encoder, tables):
    reflectance = (tables["norm_dn"] / 1e4).float()[..., None, None]
    close(encoder.normalise(reflectance)[..., 0, 0], tables["norm_out"], 1e-6)
