import pytest
import torch

from engine.training.gate import GateScore, choose_gate, is_better, is_confirmed, is_likely
from engine.training.objective import ClassObjective

PLACES, PER_PLACE = 10, 4


def score(loss, accuracy, gain_errors):
    return GateScore(5, 0.5, loss, accuracy, gain_errors)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        (score(0.45, 0.9, 2.9), False),  # could be chance
        (score(0.45, 0.79, 5.0), False),  # costs accuracy
        (score(0.45, 0.8, 3.0), True),
    ],
)
def test_a_part_that_sees_the_neighbourhood_must_be_confirmed(tried, expected):
    assert is_confirmed(tried, (0.5, 0.8)) is expected


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        (score(0.49, 0.9, 0.9), False),  # hardly better
        (score(0.49, 0.79, 3.0), False),  # costs accuracy
        (score(0.49, 0.8, 1.0), True),
    ],
)
def test_adapters_of_a_public_foundation_must_be_likely_to_help(tried, expected):
    assert is_likely(tried, (0.5, 0.8)) is expected


def test_a_part_that_sees_only_the_pixel_must_lower_the_loss():
    assert is_better(score(0.49, 0.7, 0.1), (0.5, 0.8))
    assert not is_better(score(0.51, 0.9, -0.1), (0.5, 0.8))


def classes_in_places():
    """Two classes, alternating; logits of 0 know nothing."""
    label = torch.arange(PLACES * PER_PLACE) % 2
    shares = torch.eye(2)[label]
    count = len(label)
    objective = ClassObjective(shares, torch.ones(count), torch.ones(count, dtype=torch.bool))
    return objective, torch.arange(PLACES).repeat_interleave(PER_PLACE), shares


def choose(added, accept=is_confirmed):
    objective, place, shares = classes_in_places()
    return choose_gate(objective, place, torch.zeros_like(shares), added, (0.5, 1.0), 30, accept)


def test_what_helps_everywhere_is_taken_with_its_best_weight_and_epoch():
    _pixels, _place, shares = classes_in_places()
    noise = 0.01 * torch.randn(shares.shape, generator=torch.Generator().manual_seed(0))
    choice = choose({10: shares + noise, 20: 3 * shares + noise})
    assert (choice.gate, choice.epochs) == (1.0, 20)
    assert len(choice.tried) == 4
    assert choice.without[0] == pytest.approx(0.6931, abs=1e-3)


def test_what_helps_in_one_place_only_is_not():
    _objective, place, shares = classes_in_places()
    lucky = 20 * shares * (place == 3)[:, None]
    choice = choose({10: lucky})
    assert choice.gate == 0.0 and choice.epochs == 30
    assert max(item.gain_errors for item in choice.tried) < 3
    assert choose({10: lucky}, is_better).gate > 0


def test_without_anything_tried_nothing_is_added():
    assert choose({}).gate == 0.0
