"""What an epoch is fed, and what is done while its first batches are made."""

import pytest

from graph_train.engine.step import GraphStep
from graph_train.runs.cursor import Cursor
from graph_train.training.epoch_batches import EpochBatches
from tests.graph_train.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def test_the_step_is_compiled_for_the_first_batch_before_it_is_asked_for(lab: Lab) -> None:
    run = lab.assemble(graph=True)
    try:
        cursor, batches, step = Cursor(), EpochBatches(run), run.step
        assert isinstance(step, GraphStep)
        remaining = batches.remaining(cursor)
        batches.compile_first(cursor)
        assert len(step.compilations) == 1
        batches.compile_first(cursor)
        batch = next(remaining)
        total = run.train_pipeline.images_of(0)
        labels = batches.padded_labels(batch, total, batch.max_labels)
        images = run.setup.placement.shard_batch(batch.images, total)
        assert step(images, labels, run.schedule.at(0, 0)).finite
        assert (len(step.compilations), step.replayed) == (1, 1)
    finally:
        run.close()


@pytest.mark.parametrize(
    ("flags", "mixup"), [({"graph": False}, 0.0), ({"graph": True, "rect": True}, 0.0), ({"graph": True}, 0.5)]
)
def test_no_step_is_compiled_for_a_shape_that_is_not_known(lab: Lab, flags: dict[str, bool], mixup: float) -> None:
    run = lab.assemble(**flags, hyp=lab.hyp(mixup=mixup))
    try:
        EpochBatches(run).compile_first(Cursor())
        assert run.step.compile_seconds == 0
    finally:
        run.close()


def test_nothing_is_compiled_after_the_last_batch(lab: Lab) -> None:
    run = lab.assemble(graph=True)
    try:
        EpochBatches(run).compile_first(Cursor(next_batch=run.train_pipeline.batches_per_epoch))
        assert run.step.compile_seconds == 0
    finally:
        run.close()
