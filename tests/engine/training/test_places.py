import numpy as np
import pytest

from engine.training.places import hold_out, place_folds


def samples(seed=0):
    """Three classes in 24 places of uneven size; the last class lies in three of them."""
    rng = np.random.default_rng(seed)
    place = np.repeat(np.arange(24) * 7, rng.integers(2, 9, 24))
    label = rng.integers(0, 2, len(place))
    label[np.isin(place, [0, 35, 70])] = 2
    return label, place


@pytest.mark.parametrize("seed", range(5))
def test_no_place_is_in_two_folds(seed):
    label, place = samples(seed)
    fold = place_folds(label, place, 4, seed)
    for name in np.unique(place):
        assert len(np.unique(fold[place == name])) == 1


def test_every_fold_has_places_and_a_rare_class_is_in_several():
    label, place = samples()
    fold = place_folds(label, place, 3, 0)
    assert np.unique(fold).tolist() == [0, 1, 2]
    assert np.unique(fold[label == 2]).tolist() == [0, 1, 2]


def test_there_are_no_more_folds_than_places():
    label, place = np.asarray([0, 1, 0]), np.asarray([5, 5, 9])
    assert np.unique(place_folds(label, place, 4, 0)).tolist() == [0, 1]
    assert place_folds(label, np.zeros(3, int), 4, 0).tolist() == [0, 0, 0]


def test_the_seed_decides_and_repeats():
    label, place = samples()
    first = place_folds(label, place, 4, 0)
    assert (first == place_folds(label, place, 4, 0)).all()
    assert (first != place_folds(label, place, 4, 1)).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_held_out_are_whole_places_about_as_many_as_asked_for(seed, share):
    label, place = samples(seed)
    held = hold_out(label, place, share, seed)
    for name in np.unique(place):
        assert len(np.unique(held[place == name])) == 1
    assert len(np.unique(place[held])) == round(share * 24)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_samples_to_train_on(seed):
    label, place = samples(seed)
    held = hold_out(label, place, 0.5, seed)
    assert set(label[~held]) == {0, 1, 2}


def test_a_class_in_one_place_is_never_held_out():
    label, place = samples()
    label[label == 2] = 0
    label[place == 35] = 2
    for seed in range(10):
        assert not hold_out(label, place, 0.25, seed)[label == 2].any()


def test_nothing_is_held_out_when_nothing_is_asked_for():
    label, place = samples()
    assert not hold_out(label, place, 0.0, 0).any()
