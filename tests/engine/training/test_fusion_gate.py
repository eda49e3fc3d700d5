"""How much of a network's answer is added."""

from __future__ import annotations

import pytest
import torch

from engine.training.fusion_gate import choose_gate
from engine.training.fusion_models import fit_start, make_fusers
from tests.engine.training.made_triplets import TINY, settings, triplet


@pytest.fixture
def fuser():
    item = triplet()
    asked = settings(start="bicubic")
    return make_fusers([item], fit_start([item], asked, None), asked, TINY)[0].eval()


def answering(fuser, monkeypatch, factors):
    """Make the network answer what the start leaves, each coefficient times a factor."""
    item = triplet()
    left = fuser.to_scale(item.target) - fuser.prepare(item.pair).start
    left = torch.einsum("blhw,lk->bkhw", left, fuser.basis) * torch.tensor(factors)[:, None, None]
    monkeypatch.setattr(
        fuser, "answer", lambda inputs: (left * fuser.gate[:, None, None], torch.zeros(()))
    )
    return item


def test_a_right_answer_is_added_whole(fuser, monkeypatch):
    item = answering(fuser, monkeypatch, [1.0, 1.0, 1.0, 1.0])
    choice = choose_gate(fuser, [item])
    torch.testing.assert_close(fuser.gate, torch.ones(4))
    assert choice.gain_db > 3 and choice.angle_ratio < 0.8


def test_an_answer_that_is_too_large_is_shrunk_as_much_as_it_is(fuser, monkeypatch):
    item = answering(fuser, monkeypatch, [2.0, 4.0, 1.0, 8.0])
    choose_gate(fuser, [item])
    torch.testing.assert_close(fuser.gate, torch.tensor([0.5, 0.25, 1.0, 0.125]))


def test_a_wrong_answer_is_not_added(fuser, monkeypatch):
    item = answering(fuser, monkeypatch, [-1.0, -1.0, -1.0, -1.0])
    choice = choose_gate(fuser, [item])
    assert not fuser.gate.any()
    assert (choice.gate, choice.gain_db, choice.angle_ratio) == (0.0, 0.0, 1.0)


def test_places_without_a_target_do_not_judge(fuser, monkeypatch):
    item = answering(fuser, monkeypatch, [1.0, 1.0, 1.0, 1.0])
    item.target_valid[..., 20:] = False
    item.target[..., 20:] = 9.0
    assert choose_gate(fuser, [item]).gate == pytest.approx(1.0)
