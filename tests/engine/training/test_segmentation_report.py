"""The figure of a segmenter's training: only what happened is drawn."""

import torch

from engine.training.gate import GateChoice, GateScore
from engine.training.segmentation_fit import SegmenterHistory
from engine.training.segmentation_report import network_figure

TRIED = tuple(
    GateScore(epoch, gate, loss=1.0 - gate * epoch / 10, accuracy=0.7, gain_errors=1.5)
    for epoch in (2, 4)
    for gate in (0.25, 0.5)
)


def history(gate, tried=TRIED, losses=()):
    choice = GateChoice(gate, 4, without=(1.0, 0.7), tried=tried)
    return SegmenterHistory(
        spectral=None, heads=None, choice=choice, losses=losses,
        fold=torch.zeros(1, dtype=torch.int64), held_out=None, steps=8, seconds=1.0,
    )  # fmt: skip


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().texts]


def dotted(figure):
    lines = figure.axes[0].get_lines()
    return [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"]


def test_the_figure_shows_both_curves_and_the_epoch_that_was_chosen():
    figure = network_figure(history(0.5, losses=(1.2, 1.1, 1.0, 0.9)))
    assert legend(figure) == [
        "loss, training on all", "loss, held out", "balanced accuracy, held out",
    ]  # fmt: skip
    assert dotted(figure) == [4]


def test_a_network_that_is_left_out_stopped_nowhere():
    figure = network_figure(history(0.0))
    assert legend(figure) == ["loss, held out", "balanced accuracy, held out"]
    assert dotted(figure) == []


def test_a_training_without_folds_has_its_own_loss_alone():
    figure = network_figure(history(1.0, tried=(), losses=(1.2, 1.1, 1.0, 0.9)))
    assert legend(figure) == ["loss, training on all"]


def test_curves_lie_below_the_top_of_the_figure():
    figure = network_figure(history(0.5, losses=(3.0, 1.1, 1.0, 0.9)))
    assert figure.axes[0].get_ylim()[1] > 3.0


def test_nothing_trained_gives_no_figure():
    assert network_figure(history(1.0, tried=())) is None
