import gc
import weakref

import pytest

from graph_train.ranks import team
from graph_train.ranks.launcher import RankInfo


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("ranks", [1, 2])
def test_successful_rank_keeps_unreachable_graphs_until_its_end(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """DALI collects garbage at exit; ranks that destroy graphs in different orders would wait for each other."""
    monkeypatch.setattr(team, "_team", team.Team(RankInfo(world=ranks)))
    unreachable = weakref.ref(_Cycle())
    try:
        team.leave(0)
        gc.collect()
        assert (unreachable() is not None) == (ranks > 1)
    finally:
        gc.unfreeze()
