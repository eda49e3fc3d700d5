import numpy as np
import pytest
import torch

from engine.training.metrics import ConfusionScores, scores_from_confusion

# Rows = reference. Worked by hand; far from symmetric, so that a transposition shows.
CONFUSION = [[8, 2, 0], [1, 4, 5], [0, 0, 0]]


def test_overall_accuracy_is_the_share_on_the_diagonal():
    assert scores_from_confusion(CONFUSION).overall_accuracy == pytest.approx(12 / 20)


def test_recall_goes_along_rows():
    np.testing.assert_allclose(scores_from_confusion(CONFUSION).recall, [0.8, 0.4, np.nan])


def test_precision_goes_along_columns():
    np.testing.assert_allclose(scores_from_confusion(CONFUSION).precision, [8 / 9, 4 / 6, 0])


def test_balanced_accuracy_is_over_the_classes_of_the_reference():
    assert scores_from_confusion(CONFUSION).balanced_accuracy == pytest.approx(0.6)


def test_f1_and_iou_count_a_class_that_only_the_map_has_as_zero():
    scores = scores_from_confusion(CONFUSION)
    np.testing.assert_allclose(scores.f1, [16 / 19, 8 / 16, 0])
    np.testing.assert_allclose(scores.iou, [8 / 11, 4 / 12, 0])
    assert scores.f1_macro == pytest.approx((16 / 19 + 8 / 16) / 3)
    assert scores.iou_macro == pytest.approx((8 / 11 + 4 / 12) / 3)


def test_kappa_is_the_agreement_beyond_chance():
    chance = (10 * 9 + 10 * 6) / 20**2
    assert scores_from_confusion(CONFUSION).kappa == pytest.approx((0.6 - chance) / (1 - chance))


def test_class_that_is_nowhere_changes_nothing():
    with_absent = np.insert(np.insert(CONFUSION, 1, 0, axis=0), 1, 0, axis=1)
    scores = scores_from_confusion(with_absent)
    assert scores.summary() == scores_from_confusion(CONFUSION).summary()
    assert np.isnan([scores.f1[1], scores.iou[1], scores.recall[1], scores.precision[1]]).all()


def test_one_class_alone_has_no_kappa():
    scores = scores_from_confusion([[5, 0], [0, 0]])
    assert np.isnan(scores.kappa)
    assert scores.balanced_accuracy == 1


def test_counts_of_large_maps_are_exact():
    scores = scores_from_confusion(np.array(CONFUSION, dtype=np.int64) * 10**12)
    assert scores.summary() == pytest.approx(scores_from_confusion(CONFUSION).summary())


@pytest.mark.parametrize("confusion", [[[1, 2]], [[0, 0], [0, 0]], [[1, -1], [0, 1]], np.eye(0)])
def test_what_is_no_confusion_matrix_is_refused(confusion):
    with pytest.raises(ValueError, match="confusion matrix"):
        scores_from_confusion(confusion)


def test_streaming_puts_the_reference_in_rows():
    collected = ConfusionScores(3)
    collected.update(reference=torch.tensor([0, 0, 1]), predicted=torch.tensor([0, 2, 1]))
    collected.update(reference=torch.tensor([[0]]), predicted=torch.tensor([[2]]))
    np.testing.assert_array_equal(collected.confusion, [[1, 0, 2], [0, 1, 0], [0, 0, 0]])
    assert collected.scores().overall_accuracy == 0.5


def test_streaming_leaves_out_what_has_no_label():
    collected = ConfusionScores(2, ignore_index=-1)
    collected.update(reference=torch.tensor([-1, 1]), predicted=torch.tensor([0, 1]))
    np.testing.assert_array_equal(collected.confusion, [[0, 0], [0, 1]])
