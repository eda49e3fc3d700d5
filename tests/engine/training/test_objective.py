import pytest
import torch

from engine.training.objective import ClassObjective, ValueObjective, class_weights, judge


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_class_weights_balance_to_the_degree_asked_for(balance):
    shares = torch.eye(2).repeat_interleave(torch.tensor([90, 10]), dim=0)
    weights = class_weights(shares, torch.ones(100), balance)
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(9.0**balance))
    torch.testing.assert_close((weights * torch.tensor([0.9, 0.1])).sum(), torch.tensor(1.0))


def test_classes_are_judged_alike_and_mixed_pixels_not():
    shares = torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 2 + [[0.5, 0.5]])
    objective = ClassObjective(shares, torch.ones(11), shares.max(dim=1).values > 0.6)
    always_first = torch.tensor([[5.0, 0.0]]).expand(11, 2)
    assert objective.accuracy(always_first) == pytest.approx(0.5)
    assert objective.pixel_loss(always_first)[-1] == 0


def test_a_target_of_zeros_does_not_count_for_classes_nor_for_values():
    classes = ClassObjective(torch.eye(2), torch.ones(2), torch.ones(2, dtype=torch.bool))
    values = ValueObjective(torch.randn(2), torch.ones(2), torch.ones(2, dtype=torch.bool))
    assert classes.loss(torch.randn(5, 2), torch.zeros(5, 2)).abs().max() == 0
    assert values.loss(torch.randn(5, 1), torch.zeros(5, 2)).abs().max() == 0


def values_of(answer):
    value = torch.tensor([-1.0, 0.0, 1.0, 9.0])
    scored = torch.tensor([True, True, True, False])
    return judge(ValueObjective(value, torch.ones(4), scored), answer[:, None])


def test_perfect_values_have_no_loss_and_an_r2_of_one():
    assert values_of(torch.tensor([-1.0, 0.0, 1.0, 0.0])) == (0.0, 1.0)


def test_the_mean_explains_nothing():
    loss, r2 = values_of(torch.zeros(4))
    assert loss == pytest.approx(2 / 3)
    assert r2 == pytest.approx(0.0, abs=1e-6)


def test_heavier_pixels_count_more():
    weight = torch.tensor([1.0, 3.0])
    objective = ValueObjective(torch.zeros(2), weight, torch.ones(2, dtype=torch.bool))
    loss = objective.loss(torch.ones(2, 1), objective.target)
    assert loss.tolist() == [0.5, 1.5]


def test_values_that_are_all_known_badly_are_judged_all_the_same():
    objective = ValueObjective(torch.arange(3.0), torch.ones(3), torch.zeros(3, dtype=torch.bool))
    assert objective.accuracy(torch.arange(3.0)[:, None]) == pytest.approx(1.0)
