"""The checkpoints of a run in progress: their content, and the files of an epoch."""

from dataclasses import asdict

from graph_train.host.devices import cpu_threads
from graph_train.runs.checkpoint import Checkpoint
from graph_train.runs.cursor import Cursor
from graph_train.runs.results_csv import ResultsCsv
from graph_train.runs.run_folder import LOCATION_FLAGS, RunFolder
from graph_train.runs.saving import Saving, Snapshot
from graph_train.training.assembly import TrainingRun, anchors_px
from graph_train.training.early_stopping import EarlyStopping
from models.weights import copy_weights


class RunCheckpoints:
    """Writer of a run's checkpoints on rank 0, by `saving`.

    Args:
        run, folder: the run and its folder.
        cursor, stopper, csv: position, early stopping and results of the run, as of the time of saving.
    """

    def __init__(
        self, run: TrainingRun, folder: RunFolder, cursor: Cursor, stopper: EarlyStopping, csv: ResultsCsv
    ) -> None:
        self._run, self._folder, self._cursor, self._stopper, self._csv = run, folder, cursor, stopper, csv
        options = run.setup.options
        self.saving = Saving(folder, options.run, require_finite=options.optim.max_nonfinite > 0)
        self._data = run.setup.data.fingerprint

    def due_before(self, number: int) -> bool:
        """Return whether rank 0 is to save before a batch; False on other ranks, and if there is only one.

        A single process saves after each batch instead.
        """
        exchange, first = self._run.setup.exchange, number % self._run.train_pipeline.batches_per_epoch == 0
        return exchange.is_main and not exchange.single_rank and not first and self.saving.due(number - 1)

    def save(self) -> None:
        """Start saving the present state, which all ranks flush."""
        self._run.state.flush()
        if self._run.setup.exchange.is_main:
            self.saving.start(Snapshot(self._checkpoint()))

    def save_epoch(self, epoch: int, *, improved: bool) -> None:
        """Start saving the flushed state after an epoch, with the best weights if it `improved`; on rank 0 only."""
        period = self._run.setup.options.run.save_period
        snapshot = Snapshot(
            self._checkpoint(),
            best=copy_weights(self._run.state.average) if improved else None,
            copies=[self._folder.weights / f"epoch{epoch}.safetensors"] if period > 0 and epoch % period == 0 else [],
        )
        self.saving.start(snapshot)

    def _checkpoint(self) -> Checkpoint:
        run, flags = self._run, self._run.setup.options.as_flat_dict()
        header = {
            "options": {key: value for key, value in flags.items() if key not in LOCATION_FLAGS},
            "hyp": run.setup.hyp.as_dict(),
            "cursor": asdict(self._cursor),
            "counters": asdict(run.state.counters),
            "early_stopping": self._stopper.state(),
            "results": list(self._csv.lines),
            "data": self._data,
            "threads": cpu_threads() if run.setup.device == "cpu" else 0,
            "epoch": self._cursor.epoch - 1,
            "class_names": list(run.setup.data.class_names),
            "config": dict(run.state.network.spec.config),
            "stride": list(run.state.network.stride),
            "anchors_px": anchors_px(run.state.network).tolist(),
        }
        return Checkpoint(arrays=run.state.arrays(), header=header)
