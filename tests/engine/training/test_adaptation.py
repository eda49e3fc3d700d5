"""Adapting a frozen model: it learns, it can be resumed, and the foundation stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import CancelledError, PackageError, TrainingError
from engine.feedback import SilentFeedback
from engine.models.mae import DecoderConfig
from engine.models.spectralx.presets import PRESETS
from engine.models.vit import FoundationIdentity, ViT, ViTConfig
from engine.packages.foundations import Foundation
from engine.raster.scene import open_scene
from engine.training.adaptation import (
    AdaptationSettings,
    AdaptationTask,
    adapt,
    drawing_from,
    estimate_memory,
    open_adaptation_tiles,
)
from engine.training.run_checkpoint import RunCheckpoint
from tests.engine.training.made_tiles import StopAfter, cpu

TINY = replace(
    PRESETS["laptop"],
    name="tiny",
    chip_px=8,
    patch_px=2,
    batch_chips=4,
    decoder=DecoderConfig(32, 1, 2),
    adapt_learning_rate=3e-3,
)
SETTINGS = AdaptationSettings(preset=TINY, epochs=3)
IDENTITY = FoundationIdentity("made", "ab" * 32, "mae", "MIT", "made by a test")


@pytest.fixture(scope="module")
def foundation():
    torch.manual_seed(5)
    vit = ViT(ViTConfig(embed_dim=64, depth=4, num_heads=4, patch_px=2, grid=4))
    vit.requires_grad_(False).eval()
    return Foundation(IDENTITY, vit, {}, None)


@pytest.fixture
def scene(make_raster):
    def make(name="scene.tif", **options):
        rng = np.random.default_rng(0)
        rows, cols = np.mgrid[:26, :33]
        level = 1 + 0.4 * np.sin(rows / 4) * np.cos(cols / 5)
        array = np.linspace(2000, 4000, 5)[:, None, None] * level
        array += rng.normal(0, 30, array.shape)
        return open_scene(
            make_raster(name, array=array.astype(np.int16), scale=1e-4, **options).path
        )

    return make


@pytest.fixture
def tiles(scene):
    return open_adaptation_tiles([scene()], TINY, feedback=SilentFeedback())


def run(tiles, foundation, settings=SETTINGS, feedback=None, **options):
    return adapt(
        tiles, foundation, settings, fabric=cpu(), feedback=feedback or SilentFeedback(), **options
    )


def state_of(trained):
    return {name: tensor.clone() for name, tensor in trained.model.own_state().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_reconstruction_gets_better(tiles, foundation):
    few, many = (run(tiles, foundation, replace(SETTINGS, epochs=n)) for n in (1, 25))
    assert many.scores.psnr_db > few.scores.psnr_db + 1
    assert many.history.terms == ["loss", "mse"]


def test_the_foundation_is_the_same_to_the_last_bit_afterwards(tiles, foundation):
    before = {name: tensor.clone() for name, tensor in foundation.vit.state_dict().items()}
    trained = run(tiles, foundation)
    assert same(before, foundation.vit.state_dict())
    inside = trained.model.state_dict()
    frozen = trained.model.foundation_names
    assert "vit.blocks.0.attn.qkv.weight" in frozen
    assert torch.equal(inside["vit.blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])
    assert not torch.equal(inside["vit.blocks.0.norm1.weight"], before["blocks.0.norm1.weight"])


def test_every_part_that_is_said_to_train_gets_a_gradient(tiles, foundation):
    task = AdaptationTask(tiles, foundation, SETTINGS, SilentFeedback())
    model = task.model.train()
    (batch,) = tiles.training_batches(4, range(1))
    task.losses(model, batch, torch.Generator().manual_seed(0))["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(task.counts.values()) == trained


def test_a_seed_repeats_a_run(tiles, foundation):
    first, again, other = (
        state_of(run(tiles, foundation, replace(SETTINGS, seed=seed, epochs=1)))
        for seed in (3, 3, 4)
    )
    assert same(first, again)
    assert not same(first, other)


def test_a_cancelled_run_goes_on_to_the_same_bits(tiles, foundation, tmp_path):
    """The routers' noise in training is drawn by torch, whose state is kept nowhere."""
    checkpoint = RunCheckpoint(tmp_path / "run.safetensors", {})
    whole = run(tiles, foundation)
    with pytest.raises(CancelledError):
        run(tiles, foundation, feedback=StopAfter(4), checkpoint=checkpoint)
    torch.manual_seed(99)
    again = run(tiles, foundation, resume=checkpoint.load())
    assert same(state_of(whole), state_of(again))
    assert whole.scores == again.scores


def test_a_checkpoint_leaves_the_foundation_out(tiles, foundation, tmp_path):
    checkpoint = RunCheckpoint(tmp_path / "run.safetensors", {})
    run(tiles, foundation, replace(SETTINGS, epochs=1), checkpoint=checkpoint)
    names = checkpoint.load().tensors
    assert "model.adapted.vit.blocks.0.norm1.weight" in names
    assert not any("adapted.vit." in name and "attn.qkv" in name for name in names)


def test_layers_draw_the_same_in_the_same_step_and_leave_torchs_state_alone():
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with drawing_from(torch.Generator().manual_seed(seed), torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_training_its_core_the_tokenizer_keeps_it(tiles, foundation):
    trained = run(tiles, foundation, replace(SETTINGS, train_tokenizer=False, epochs=1))
    assert "tokenizer's core" not in trained.counts
    with torch.random.fork_rng():
        first = AdaptationTask(
            tiles, foundation, replace(SETTINGS, train_tokenizer=False), SilentFeedback()
        )
    before, after = first.network.adapted.state_dict(), trained.model.state_dict()
    core = [name for name in after if name.startswith("tokenizer.core")]
    assert core
    assert all(torch.equal(before[name], after[name]) for name in core)
    assert not torch.equal(before["tokenizer.down.weight"], after["tokenizer.down.weight"])


def test_load_balancing_is_a_term_of_the_loss(tiles, foundation):
    trained = run(tiles, foundation, replace(SETTINGS, load_balancing=0.01, epochs=1))
    row = trained.history.rows[-1]
    assert trained.history.terms == ["loss", "mse", "balance"]
    assert row["loss"] == pytest.approx(row["mse"] + row["balance"], rel=1e-4)
    assert row["balance"] > 0


def test_what_is_hidden_is_hidden_from_the_tokenizer_only_when_asked_for(tiles, foundation):
    (batch,) = tiles.training_batches(4, range(1))
    ids_keep = torch.arange(4)[None].expand(4, -1)
    changed = {}
    for mask_input in (True, False):
        settings = replace(SETTINGS, mask_input=mask_input)
        task = AdaptationTask(tiles, foundation, settings, SilentFeedback())
        network = task.network.eval()
        x = task.scaled(batch).x
        other = x.clone()
        other[:, :, -2:] += 1.0  # in the last row of tokens, which is hidden
        with torch.no_grad():
            changed[mask_input] = not torch.equal(
                network.encode(x, ids_keep), network.encode(other, ids_keep)
            )
    assert changed == {True: False, False: True}


def test_targets_are_trained_on_and_never_scored(scene, foundation):
    source, target = scene(), scene("target.tif", crs="EPSG:32734")
    tiles = open_adaptation_tiles([source, target], TINY, scored=1, feedback=SilentFeedback())
    assert {anchor.scene_index for anchor in tiles.plan.held_out} == {0}
    assert {anchor.scene_index for anchor in tiles.plan.training} == {0, 1}


def test_published_settings_come_with_their_preset():
    paper = AdaptationSettings(preset=PRESETS["paper"])
    assert (paper.hides_pixels, paper.fit.weight_decay, paper.fit.learning_rate) == (
        False, 1e-4, 1e-4,
    )  # fmt: skip
    assert AdaptationSettings(preset=PRESETS["paper"], mask_input=True).hides_pixels
    assert AdaptationSettings().hides_pixels


def test_memory_grows_with_the_batch_and_is_found_without_a_trace(tiles, foundation):
    config = SETTINGS.config(tiles.bands.wavelength_nm.tolist(), foundation)
    before = torch.get_rng_state()
    memory = estimate_memory(config, foundation, SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)
    trained = AdaptationTask(tiles, foundation, SETTINGS, SilentFeedback()).model
    weights = sum(p.numel() for p in trained.parameters())
    learnt = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert memory.fixed_bytes >= 4 * weights + 12 * learnt
    wide = replace(TINY, chip_px=16)
    larger = replace(SETTINGS, preset=wide)
    of_larger = larger.config(tiles.bands.wavelength_nm.tolist(), foundation)
    assert estimate_memory(of_larger, foundation, larger).sample_bytes > 3 * memory.sample_bytes
    assert memory.bytes_for(3) - memory.bytes_for(1) == 2 * memory.sample_bytes


# Bad input


def test_tiles_of_another_size_are_refused(tiles, foundation):
    settings = AdaptationSettings(preset=PRESETS["laptop"])
    with pytest.raises(TrainingError, match="The tiles are of 8 px with tokens of 2 px"):
        AdaptationTask(tiles, foundation, settings, SilentFeedback())


def test_sizes_that_no_tokenizer_can_have_name_backbone_and_preset(tiles, foundation):
    odd = replace(TINY, name="odd", chip_px=3, patch_px=1)
    with pytest.raises(PackageError, match="backbone made cannot be adapted with the preset odd"):
        AdaptationSettings(preset=odd).config([500.0], foundation)


def test_a_decoder_whose_tensors_contradict_one_another_is_refused(tiles, foundation):
    tensors = {
        "decoder_embed.weight": torch.zeros(32, 64),
        "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_pred.weight": torch.zeros(12, 32),
        "decoder_blocks.0.mlp.fc1.weight": torch.zeros(64, 32),
    }
    broken = replace(foundation, decoder=tensors)
    with pytest.raises(
        PackageError, match=r"made cannot be adapted: The decoder's tensor .* is missing"
    ):
        AdaptationTask(tiles, broken, SETTINGS, SilentFeedback())
