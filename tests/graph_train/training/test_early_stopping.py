"""Early stopping: known values, and the same decision after a restart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_train.training.early_stopping import EarlyStopping


def test_stops_after_patience_epochs_without_improvement() -> None:
    stopper = EarlyStopping(patience=2)
    decisions = [stopper.update(epoch, fitness) for epoch, fitness in enumerate([0.1, 0.3, 0.2, 0.2])]
    assert [d.stop for d in decisions] == [False, False, False, True]
    assert [d.possible_stop for d in decisions] == [False, False, True, True]
    assert (stopper.best_epoch, stopper.best_fitness) == (1, 0.3)


def test_equal_fitness_counts_as_improvement() -> None:
    stopper = EarlyStopping(patience=1)
    assert not any(stopper.update(epoch, 0.0).stop for epoch in range(5))
    assert stopper.best_epoch == 4


def test_patience_zero_never_stops() -> None:
    stopper = EarlyStopping(patience=0)
    stopper.update(0, 0.9)
    assert not any(stopper.update(epoch, 0.1).possible_stop for epoch in range(1, 500))


def test_negative_patience_raises() -> None:
    with pytest.raises(ValueError, match="patience=-1"):
        EarlyStopping(-1)


@given(fitness=st.lists(st.floats(0, 1), min_size=2, max_size=30), patience=st.integers(0, 5), data=st.data())
def test_restored_matches_uninterrupted(fitness: list[float], patience: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(fitness) - 1))
    whole, first, second = EarlyStopping(patience), EarlyStopping(patience), EarlyStopping(patience)
    expected = [whole.update(epoch, value) for epoch, value in enumerate(fitness)]
    got = [first.update(epoch, fitness[epoch]) for epoch in range(cut)]
    second.restore(first.state())
    got += [second.update(epoch, fitness[epoch]) for epoch in range(cut, len(fitness))]
    assert got == expected
