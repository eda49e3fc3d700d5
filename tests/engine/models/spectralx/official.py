"""The fixtures of SpectralX, and the names of the published code's tensors in ours.

Sizes, seeds and names come from the sidecars and the filling rule of the fixtures' folder, so that
another set of fixtures in the same layout is read as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

# (pattern, replacement), each applied once, in order; nothing is changed that none fits.
_TOKENIZER = (
    (r"\bproj\.downsample_module\.conv1\.", "core.stem.expand."),
    (r"\bproj\.downsample_module\.conv2\.", "core.stem.last."),
    (r"\bproj\.downsample_module\.module1\.", "core.stem.residuals.0."),
    (r"\bproj\.downsample_module\.module2\.", "core.stem.downs.0."),
    (r"\bproj\.downsample_module\.module3\.", "core.stem.residuals.1."),
    (r"\bproj\.downsample_module\.module4\.", "core.stem.downs.1."),
    (r"\bproj\.spa_semantic_module\.0\.", "core.spatial_block."),
    (r"\bproj\.spe_semantic_module\.0\.", "core.spectral_block."),
    (r"\bproj\.spa_query\b", "core.spatial_query"),
    (r"\bproj\.spe_query\b", "core.spectral_query"),
    (r"\bproj\.(?=sp[ae]_match_attn\.)", "core."),
    (r"\bproj\.match_ff\.0\.", "core.norm."),
    (r"\bproj\.match_ff\.1\.", "core.fc1."),
    (r"\bproj\.match_ff\.3\.", "core.fc2."),
)
_MATCH = (
    (r"\bspa_match_attn\.", "spatial_match."),
    (r"\bspe_match_attn\.", "spectral_match."),
    (r"\bnorm_media\.", "norm_features."),
    (r"\bnorm_latents\.", "norm_queries."),
)
_REFINE = (
    (r"\brefine_spa\.", "refine_spatial."),
    (r"\brefine_spe\.", "refine_spectral."),
    (r"\bspa_mlp\.", "unused_spatial."),
    (r"\bspe_mlp\.", "unused_spectral."),
)
_ADAPTED = (
    (r"\bblocks_MoA\.norm1\.", "norm_half."),
    (r"\bblocks_MoA\.norm2\.", "norm_reduced."),
    (r"\bblocks_MoA\.dimReduction\.", "reduce."),
    (r"\bblocks_MoA\.dimIncrease\.", "expand."),
    (r"\bblocks_MoA\.MoA\.w_gate$", "gate"),
    (r"\bblocks_MoA\.MoA\.w_noise$", "gate_noise"),
    (r"\bblocks_MoA\.MoA\.(mean|std)$", ""),  # of the noise; never used
)
_BASE = ((r"\blinear\.", "base."),)  # of an adapted or low-rank linear layer
_CONV_BASE = ((r"^proj\.", "base."),)  # of a low-rank convolution
_EXPERT = re.compile(r"^(.*)blocks_MoA\.MoA\.experts\.(\d+)\.fc([12])\.(weight|bias)$")
_EXPERT_NAMES = {
    ("1", "weight"): "weight_in",
    ("1", "bias"): "bias_in",
    ("2", "weight"): "weight_out",
    ("2", "bias"): "bias_out",
}

State = dict[str, torch.Tensor]


def under(weights: Mapping[str, torch.Tensor], prefix: str) -> State:
    """The tensors below a prefix, without it: ``under(weights, "AreApt.")``."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def tokenizer_state(weights: Mapping[str, torch.Tensor]) -> State:
    """Of a published tokenizer with its low-rank path, for `HyperTokenizer`.

    In a whole network it lies below ``patch_embed.proj.``, which `under` cuts.
    """
    return _renamed(weights, _TOKENIZER + _MATCH)


def refine_state(weights: Mapping[str, torch.Tensor]) -> State:
    """Of the published Are-adapter, for `RefiningAdapter(…, keep_unused=True)`."""
    return _renamed(weights, _MATCH + _REFINE)


def adapted_state(weights: Mapping[str, torch.Tensor]) -> State:
    """Adapted linear layers anywhere in a network, for `AdaptedLinear`; all else keeps its name.

    Experts, a tensor each there, are stacked here.
    """
    return _renamed(_stacked(weights), _ADAPTED + _BASE)


def low_rank_state(weights: Mapping[str, torch.Tensor]) -> State:
    """Of one published low-rank layer, for `LowRankLinear` or `LowRankConv`."""
    return _renamed(weights, _BASE + _CONV_BASE)


def _stacked(weights: Mapping[str, torch.Tensor]) -> State:
    plain: State = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for key, tensor in weights.items():
        if match := _EXPERT.match(key):
            stem, number, layer, kind = match.groups()
            experts.setdefault(stem + _EXPERT_NAMES[layer, kind], {})[int(number)] = tensor
        else:
            plain[key] = tensor
    stacked = {key: torch.stack([of[n] for n in sorted(of)]) for key, of in experts.items()}
    return plain | stacked


def _renamed(weights: Mapping[str, torch.Tensor], rules) -> State:
    state = {}
    for key, tensor in weights.items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name and not name.endswith("."):  # what was renamed to nothing is left out
            state[name] = tensor
    return state


class Fixture:
    """A recorded run of the published code: its settings, weights, inputs and outputs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._path = folder / "methods" / f"{name}.json"
        if not self._path.is_file():
            pytest.skip(f"the fixture is not here: {self._path}")
        self.sidecar = json.loads(self._path.read_text())
        self._fill = _fill_module(folder / "fill.py")
        self._recorded = load_file(self._path.with_suffix(".safetensors"))

    @property
    def constructor(self) -> dict:
        return self.sidecar["constructor"]

    @property
    def output_names(self) -> list[str]:
        return list(self.sidecar["outputs"])

    @cached_property
    def weights(self) -> State:
        """Official key → float32 tensor (int64 for counters)."""
        filled = self._fill.fill_state_dict(self.sidecar["state_dict"])
        return {key: torch.from_numpy(np.asarray(value)) for key, value in filled.items()}

    def input(self, name: str) -> torch.Tensor:
        """An input, stored or drawn again, whose hash is checked."""
        entry = self.sidecar["inputs"][name]
        if entry["stored"]:
            array = self._recorded[f"input.{name}"].numpy()
        else:
            array = self._fill.make_input(*entry["make_input"])
        array = np.ascontiguousarray(array)
        assert hashlib.sha256(array.tobytes()).hexdigest() == entry["sha256"]
        return torch.from_numpy(array)

    def check(self, name: str, found: torch.Tensor) -> None:
        """Compare an output: float64 against the strict numbers, else against the float32 ones."""
        entry = self.sidecar["outputs"][name]
        strict = found.dtype == torch.float64
        assert list(found.shape) == entry["full_shape"], name
        part = found.detach()[_slices(entry.get("slice64" if strict else "slice"))]
        expected = self._recorded[f"{'output64' if strict else 'output'}.{name}"]
        if not expected.is_floating_point():
            assert torch.equal(part.long(), expected.long()), name
            return
        atol = entry["atol64" if strict else "atol"]
        torch.testing.assert_close(
            part.double(), expected.double(), atol=atol, rtol=0, msg=lambda m: f"{name}: {m}"
        )

    def recorded(self, name: str) -> torch.Tensor:
        """An output of the float32 run, as it is stored."""
        return self._recorded[f"output.{name}"]

    def has_strict(self, name: str) -> bool:
        """Whether a float64 run is recorded for an output."""
        return f"output64.{name}" in self._recorded


def _slices(cuts: list | None) -> tuple[slice, ...]:
    return tuple(slice(*cut) for cut in cuts or [])


def _fill_module(path: Path) -> ModuleType:
    """The rule that fills weights and inputs, which is part of the fixtures."""
    if not path.is_file():
        pytest.skip(f"the fixtures' filling rule is not here: {path}")
    spec = importlib.util.spec_from_file_location("spectralx_fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
