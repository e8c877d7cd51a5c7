"""Parity of auto-anchor with `autoanchor.npz`: metric, k-means, evolution, decision, order of levels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.training.autoanchor import (
    AnchorRandom,
    anchor_fit,
    anchor_mutation_factors,
    box_sizes_px,
    by_area,
    check_anchors,
    evolve_anchors,
    fit_anchors,
    in_stride_order,
    kmeans_anchors,
    large_enough,
)
from tests.parity.harness import Mode, Report, Subject

_Vectors = Mapping[str, npt.NDArray[Any]]


def _names(z: _Vectors, suffix: str) -> list[str]:
    return sorted(key.removesuffix(suffix) for key in z if key.endswith(suffix))


def _images(z: _Vectors, name: str) -> list[npt.NDArray[np.float32]]:
    ends = np.cumsum(z[f"{name}_labels_per_image"].astype(int))
    return np.split(z[f"{name}_labels"].astype(np.float32), ends[:-1])


def _check_fit(z: _Vectors, name: str, report: Report) -> None:
    image_px, threshold, count = (z[f"{name}_{part}"].item() for part in ("img_size", "thr", "n"))
    generations = len(z[f"{name}_accepted"])
    sizes = box_sizes_px(z[f"{name}_shapes"], _images(z, name), image_px)
    usable = large_enough(sizes)
    report.close(f"{name} all sizes", sizes, z[f"{name}_wh_all"], rtol=1e-6)
    report.close(f"{name} filtered sizes", usable, z[f"{name}_wh_filtered"], rtol=1e-6)
    fit = anchor_fit(sizes.astype(np.float32), z[f"{name}_anchors"].astype(np.float32), threshold)
    report.close(f"{name} recall", fit.best_possible_recall, z[f"{name}_bpr"], atol=1e-5)
    report.close(f"{name} anchors per target", fit.anchors_per_target, z[f"{name}_aat"], atol=1e-5)

    recorded = z[f"{name}_mutation_factors"].astype(np.float64)
    replay = evolve_anchors(by_area(z[f"{name}_kmeans_init"].astype(np.float64)), usable, threshold, recorded)
    report.exact(f"{name} accepted", replay.accepted, z[f"{name}_accepted"])
    report.close(f"{name} replayed anchors", replay.anchors_px, z[f"{name}_anchors"], atol=1e-3)
    report.close(f"{name} replayed fitness", replay.trace, z[f"{name}_fitness_trace"], atol=1e-6)

    rng = AnchorRandom.from_seed(z[f"{name}_seed"].item())
    start = kmeans_anchors(usable, count, image_px, rng)
    report.close(f"{name} k-means", start, z[f"{name}_kmeans_init"], atol=1e-2)
    drawn = list(anchor_mutation_factors(start.shape, generations, rng))
    report.close(f"{name} mutation factors", drawn, recorded, rtol=1e-9)
    whole = fit_anchors(
        sizes,
        count,
        image_px=image_px,
        threshold=threshold,
        rng=AnchorRandom.from_seed(z[f"{name}_seed"].item()),
        generations=generations,
    )
    report.close(f"{name} anchors from the seed", whole, z[f"{name}_anchors"], atol=1e-2)


def _check_decision(z: _Vectors, name: str, report: Report) -> None:
    before_px, grid = z[f"{name}_anchors_before_px"], z[f"{name}_anchors_before_grid"]
    strides = (before_px.astype(np.float64) / grid.astype(np.float64))[:, 0, 0]
    image_px, threshold, seed = (z[f"{name}_{part}"].item() for part in ("imgsz", "thr", "seed"))
    images, shapes = _images(z, name), z[f"{name}_shapes"]
    scaled = box_sizes_px(shapes, images, image_px, z[f"{name}_scale_draw"])
    report.close(f"{name} sizes", scaled.astype(np.float32), z[f"{name}_wh"], rtol=1e-6)
    decision = check_anchors(
        shapes,
        images,
        before_px.astype(np.float32),
        strides.tolist(),
        image_px=image_px,
        threshold=threshold,
        rng=AnchorRandom.from_seed(seed),
    )
    report.close(f"{name} recall", decision.before.best_possible_recall, z[f"{name}_bpr"], atol=1e-5)
    report.close(f"{name} anchors per target", decision.before.anchors_per_target, z[f"{name}_aat"], atol=1e-5)
    report.exact(f"{name} recompute", decision.recomputed, z[f"{name}_recompute"])
    report.exact(f"{name} replaced", decision.replaced, z[f"{name}_replaced"])
    report.close(f"{name} recall after", decision.after.best_possible_recall, z[f"{name}_bpr_after"], atol=0.02)
    report.close(
        f"{name} anchors per target after", decision.after.anchors_per_target, z[f"{name}_aat_after"], atol=0.5
    )
    if not decision.replaced:
        report.close(f"{name} anchors px", decision.anchors_px, z[f"{name}_anchors_after_px"], rtol=1e-6)
    after_fit = anchor_fit(
        scaled.astype(np.float32), z[f"{name}_anchors_after_px"].astype(np.float32).reshape(-1, 2), threshold
    )
    report.close(
        f"{name} recall of the reference's anchors", after_fit.best_possible_recall, z[f"{name}_bpr_after"], atol=1e-5
    )


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare everything in one file; NumPy code, so there is only one mode."""
    z = report.open(path)
    with report.part("fits"):
        for name in _names(z, "_kmeans_init"):
            _check_fit(z, name, report)
    with report.part("decisions"):
        for name in _names(z, "_recompute"):
            _check_decision(z, name, report)
    with report.part("orders"):
        for name in _names(z, "_before"):
            before = z[f"{name}_before"].astype(np.float32)
            strides = [8 * 2**level for level in range(len(before))]
            report.close(f"{name} anchors", in_stride_order(before, strides), z[f"{name}_after"])


SUBJECT = Subject(("autoanchor*.npz",), check, modes=("eager",), information=("*_fitness_init", "*_anchors_after_grid"))
