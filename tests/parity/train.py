"""Parity of whole training steps: losses, gradient norms, counters and final states of a recorded run.

A run that disagrees is repeated only where a near tie of box edges explains it (`edge_ties`): in the same mode, with
the same kernels and weights, and with one label's edge moved across the predicted one, by thousandths of a cell. Then
that whole run has to agree, final states included, and counts as forgiven. Nothing else is. A run with an update that
differs from its formula is not repeated, because a tie changes gradients only.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graph_train.engine.schedule import ema_decay
from tests.parity.edge_ties import EdgeTie, near_ties
from tests.parity.harness import Mode, Report, Subject
from tests.parity.train_replay import Arrays, Case, Replay, replay
from tests.parity.update_audit import LIMIT as UPDATE_LIMIT

STRICT_ITERATIONS = 6
MAX_TIES, MAX_CANDIDATES = 3, 4
NORM_RTOL, ITEM_ATOL = 2e-3, 1e-6
STATE_ARRAYS = ("final", "ema/", "ema_names", "ema_sample")
"""Prefixes of the names in a final state, which short recordings do not have."""
LATE_RTOL = {"SGD": 1e-4, "AdamW": 5e-4, "Adam": 5e-4}
MEDIAN_MOVED = {"SGD": (2e-2, 5e-3, 0.2), "AdamW": (2e-2, 0.1, 0.2), "Adam": (2e-2, 0.1, 0.2)}
"""Limits of the median relative error (L2 of the error over L2 of the change by training) of the tensors in a group
(biases, weights, BN weights), from the vectors' README."""
MAX_MOVED = {"SGD": (0.05, 0.05, 0.2), "AdamW": (0.1, 0.25, 0.25), "Adam": (0.1, 0.25, 0.25)}
"""Limits of the relative error of each tensor, beyond one rounding of its values; measured 0.005, 0.012, 0.02 with SGD,
and 0.009, 0.058, 0.072 with AdamW beyond a tie of edges. Without an update it is 1, with the wrong sign 2."""
MAX_STATISTICS_MOVED = 0.02
"""Limit of the relative error of running statistics; measured 6e-4 with SGD, 2e-3 with AdamW."""
LAG_LIMITS = (0.05, 0.5)
"""Limits of the relative error (L2) of the average's lag behind the model, for statistics and for parameters: measured
0.0005 and 0.06 with SGD, 0.0025 and 0.17 with AdamW. An average that is a copy of the model has 1."""
STATISTIC_LAG = 0.1
"""Limit of the relative error of each statistic's lag; measured 5e-3 with SGD, 4e-4 with AdamW."""


def _loose(case: Case) -> bool:
    """Return whether a run has the usual learning rates, with which rounding grows to percents within 12 steps."""
    return "hyp_over" not in case.settings


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare one run with ours."""
    case, ties = Case(path), list[EdgeTie]()
    report.opened.append(case.vectors)
    run = replay(case, mode)
    compare(case, run, report)
    agrees = report.ok
    while not agrees and run.follows_formulas and len(ties) < MAX_TIES:
        found = _replay_past_tie(case, mode, run, ties)
        if found is None:
            return
        tie, run = found
        ties.append(tie)
        again = Report()
        compare(case, run, again)
        agrees = again.ok
        if agrees:
            report.comparisons, report.forgiven = again.comparisons, [str(tie) for tie in ties]


def _replay_past_tie(case: Case, mode: Mode, run: Replay, known: list[EdgeTie]) -> tuple[EdgeTie, Replay] | None:
    """Return the tie that explains the first disagreeing iteration and the run replayed with it, if any."""
    wrong = np.flatnonzero(~_agreeing(case, run))
    if not len(wrong):
        return None
    last = int(wrong[0])
    updates = np.flatnonzero(run.stepped[:last])
    # The gradient of this update or, if only the loss shows it, of the one before.
    first = int(updates[-2]) + 1 if len(updates) > 1 else 0
    moves = tuple(tie.move for tie in known)
    for tie in near_ties(case, mode, first, last, moves)[:MAX_CANDIDATES]:
        candidate = (*moves, tie.move)
        if _agreeing(case, replay(case, mode, iterations=last + 1, moves=candidate, audited=False)).all():
            return tie, replay(case, mode, moves=candidate)
    return None


def _agreeing(case: Case, run: Replay) -> npt.NDArray[np.bool_]:
    """Return whether loss, loss items and gradient norm are within tolerance, (iterations,) bool."""
    count = len(run.results)
    report = [Report() for _ in range(count)]
    for number, row in enumerate(report):
        _compare_iterations(case, run, slice(number, number + 1), row)
    return np.array([row.ok for row in report])


def _compare_iterations(case: Case, run: Replay, which: slice, report: Report) -> None:
    vectors, late = case.vectors, LATE_RTOL[case.settings["opt_name"]]
    losses, wanted = run.losses[which], vectors["step_total_loss"][which]
    numbers = np.arange(case.iterations)[which]
    if _loose(case):
        report.close("loss, iterations 0-2", losses[numbers < 3], wanted[numbers < 3], rtol=1e-4)
        report.close("loss", losses, wanted, rtol=0.1)
        return
    early = numbers < STRICT_ITERATIONS
    report.close("loss, iteration 0", losses[numbers < 1], wanted[numbers < 1], rtol=1e-6)
    report.close("loss, first iterations", losses[early], wanted[early], rtol=1e-5)
    report.close("loss", losses, wanted, rtol=late)
    report.close("loss items", run.items[which], vectors["step_loss_items"][which], rtol=late, atol=ITEM_ATOL)
    stepped = vectors["step_stepped"][which].astype(bool)
    report.close("gradient norm", run.norms[which][stepped], vectors["step_grad_norm"][which][stepped], rtol=NORM_RTOL)


def compare(case: Case, run: Replay, report: Report) -> None:
    """Compare our whole run."""
    vectors = case.vectors
    stepped = vectors["step_stepped"].astype(bool)
    report.exact("accumulate", run.accumulate, vectors["step_accumulate"])
    report.exact("stepped", run.stepped, stepped)
    report.close("learning rates", [s.learning_rates for s in run.settings], vectors["step_lr"], rtol=1e-9)
    momentum = np.array([[s.momentum] * 3 for s in run.settings])
    report.close("momentum", momentum, vectors["step_momentum"], rtol=1e-9)
    decay = np.tile(case.schedule().weight_decays, (case.iterations, 1))
    report.close("weight decay", decay, vectors["step_weight_decay"], rtol=1e-9)
    epochs = np.arange(case.iterations) // case.settings["nb"]
    report.exact("iterations", np.arange(case.iterations), vectors["step_ni"])
    report.exact("epochs", epochs, vectors["step_epoch"])
    for group in range(3):
        ours = sorted(name for name, number in run.groups.items() if number == group)
        report.exact(f"group {group}", ours, sorted(vectors[f"group_{group}_names"].tolist()))
    decays = [ema_decay(update + 1) for update in range(int(run.stepped.sum()))]
    report.close("ema decay", decays, vectors["step_ema_decay"][stepped], rtol=1e-9)
    report.exact("ema updates", run.updates, vectors["ema_updates"])
    _compare_iterations(case, run, slice(None), report)
    for name, error in run.update_errors.items():
        report.close(f"updates of {name}, in roundings", error, 0.0, atol=UPDATE_LIMIT)
    if any(name.startswith(STATE_ARRAYS) for name in vectors):
        _compare_states(case, run, report)


class _Sampled:
    """A recorded state with the indices of the recorded elements of each tensor."""

    def __init__(self, vectors: Arrays, kind: str, whole: Mapping[str, np.ndarray]) -> None:
        steps = zip(vectors[f"{kind}_names"].tolist(), vectors[f"{kind}_sample_step"].tolist(), strict=True)
        self.steps = {name: 1 if name in whole else step for name, step in steps}
        self.values = {name: whole.get(name, vectors[f"{kind}/{name}"]) for name in self.steps}

    def of(self, arrays: Mapping[str, np.ndarray], prefix: str = "") -> Arrays:
        """Return the recorded elements of another state."""
        return {
            name: arrays[prefix + name].ravel()[::step].reshape(self.values[name].shape)
            for name, step in self.steps.items()
        }


def _compare_states(case: Case, run: Replay, report: Report) -> None:
    vectors = case.vectors
    full = case.path.with_name(f"{case.path.stem}_final_full.npz")
    whole: Arrays = report.open(full) if full.exists() else {}
    final, ema = _Sampled(vectors, "final", whole), _Sampled(vectors, "ema", {})
    for kind, sampled, prefix in (("final", final, "model/"), ("ema", ema, "ema/")):
        report.exact(f"{kind}: tensors", sorted(sampled.steps), sorted(case.initial))
        _compare_state(case, kind, sampled.of(run.arrays, prefix), sampled, report)
        _compare_lengths(case, kind, run, sampled, report)
    _compare_lag(case, run, report)


def _compare_state(case: Case, kind: str, got: Arrays, sampled: "_Sampled", report: Report) -> None:
    """Compare each tensor and the median over the tensors of each parameter group."""
    want, start = sampled.values, sampled.of(case.initial)
    optimizer = case.settings["opt_name"]
    groups = {str(name): group for group in range(3) for name in case.vectors[f"group_{group}_names"]}
    moved: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for name, value in want.items():
        error, change = _norm(got[name] - value), _norm(value - start[name])
        rounding = _norm(np.spacing(np.abs(value).astype(np.float32)))
        if name.endswith("num_batches_tracked"):
            report.exact(f"{kind}/{name}", got[name], value)
        elif name in groups:
            limit = MAX_MOVED[optimizer][groups[name]]
            report.close(f"{kind}/{name}", max(error - rounding, 0.0), 0.0, atol=limit * change)
            if change > 0:
                moved[groups[name]].append(error / change)
        elif name.endswith(("running_mean", "running_var")):
            report.close(f"{kind}/{name}", got[name], value, rtol=1e-3, atol=1e-4)
            report.close(f"{kind}/{name}: moved", error / change if change else error, 0.0, atol=MAX_STATISTICS_MOVED)
    for group, limit in enumerate(MEDIAN_MOVED[optimizer]):
        report.close(f"{kind}: median moved of group {group}", float(np.median(moved[group])), 0.0, atol=limit)


def _compare_lengths(case: Case, kind: str, run: Replay, sampled: "_Sampled", report: Report) -> None:
    """Compare the L2 norm of each whole parameter, of which a state may have only a sample.

    Norms differ by at most the norm of the difference, which is bounded as in `_compare_state`; the change of the whole
    tensor is estimated from its sample.
    """
    prefix = "model/" if kind == "final" else "ema/"
    optimizer, start = case.settings["opt_name"], sampled.of(case.initial)
    lengths = dict(zip(case.vectors[f"{kind}_names"].tolist(), case.vectors[f"{kind}_l2"].tolist(), strict=True))
    for name, group in run.groups.items():
        whole, sample = run.arrays[prefix + name], sampled.values[name]
        moved = _norm(sample - start[name]) * np.sqrt(whole.size / sample.size)
        rounding = _norm(np.spacing(np.abs(whole)))
        limit = MAX_MOVED[optimizer][group] * moved + rounding
        report.close(f"{kind}/{name}: L2", _norm(whole), lengths[name], atol=limit)


def _compare_lag(case: Case, run: Replay, report: Report) -> None:
    """Compare the EMA's distance from the model, since `ema/` itself hardly changes within 12 updates."""
    vectors = case.vectors
    final, ema = _Sampled(vectors, "final", {}), _Sampled(vectors, "ema", {})
    ours_final, ours_ema = final.of(run.arrays, "model/"), ema.of(run.arrays, "ema/")
    parameters = {str(name) for group in range(3) for name in vectors[f"group_{group}_names"]}
    statistics = {name for name in final.steps if name.endswith(("running_mean", "running_var"))}
    for kind, names, limit in zip(("statistics", "parameters"), (statistics, parameters), LAG_LIMITS, strict=True):
        shared = [name for name in final.steps if name in names and name in ema.steps]
        got = [ours_final[name].astype(np.float64).ravel() - ours_ema[name].ravel() for name in shared]
        want = [final.values[name].astype(np.float64).ravel() - ema.values[name].ravel() for name in shared]
        report.relative_l2(f"final - ema, {kind}", np.concatenate(got), np.concatenate(want), limit=limit)
        for name, ours, theirs in zip(shared, got, want, strict=True):
            if kind == "statistics":
                report.relative_l2(f"final - ema, {name}", ours, theirs, limit=STATISTIC_LAG)
            else:  # that of some parameters is within a rounding, which `UpdateAudit` allows for
                rounding = _norm(np.spacing(np.abs(final.values[name]).astype(np.float32)))
                error = max(_norm(ours - theirs) - rounding, 0.0)
                report.close(f"final - ema, {name}", error, 0.0, atol=limit * _norm(theirs))


def _norm(values: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(values.ravel().astype(np.float64)))


SUBJECT = Subject(
    ("train_*.npz",),
    check,
    companions=("train_common.npz", "train_*_final_full.npz"),
    information=("*_sum", "*_absmax", "hyp_*_json"),
)
