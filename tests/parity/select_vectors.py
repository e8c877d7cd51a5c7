"""`python -m tests.parity.select_vectors FOLDER`: write the small set of recorded vectors in tests/vectors/.

FOLDER has all vectors of the reference. Whole files or parts of them are copied without changing numbers, so that a
clone without that folder can compare, too. Most of the size is the initial weights of the recorded runs.
"""

import argparse
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
VECTORS = Path(__file__).resolve().parents[1] / "vectors"
ITERATIONS = 21
"""Number of iterations of the run with a final state."""
ACCUMULATING_ITERATIONS = 15
"""Number of iterations of the run that accumulates up to four batches."""
MAX_RECORDED = 32
"""Number of elements kept of each final tensor."""
MODELS = ("yolov3-tiny", "yolov5n", "yolov5n6", "yolov5s-ghost")


def _all(arrays: Arrays) -> Arrays:
    return arrays


def _every_fourth_pair(arrays: Arrays) -> Arrays:
    rows = len(arrays["group"])
    return {
        name: value[::4] if value.shape[:1] == (rows,) else value
        for name, value in arrays.items()
        if not name.endswith("_float64")
    }


def _few_models(arrays: Arrays) -> Arrays:
    names = arrays["cfg"].tolist()
    rows = [row for row, name in enumerate(names) if name in MODELS]
    kept = {}
    for name, value in arrays.items():
        if "/" not in name:
            kept[name] = value[rows] if value.shape[:1] == (len(names),) else value
        elif name.split("/")[1] in MODELS:
            kept[name] = value
    return kept


def _start(arrays: Arrays) -> Arrays:
    """Keep weights as float16, which holds them exactly, and the first batches."""
    kept = {}
    for name, value in arrays.items():
        kept[name] = value.astype(np.float16) if name.startswith("init/") and value.dtype == np.float32 else value
        assert np.array_equal(kept[name], value), name
    kept["images_u8"] = arrays["images_u8"][:ITERATIONS]
    kept["targets_per_iter"] = arrays["targets_per_iter"][:ITERATIONS]
    kept["targets"] = arrays["targets"][arrays["targets"][:, 0] < ITERATIONS]
    return kept


def _sampled_run(arrays: Arrays) -> Arrays:
    """Return a run with fewer elements of its final tensors."""
    kept = dict(arrays)
    for kind in ("final", "ema"):
        steps = arrays[f"{kind}_sample_step"].copy()
        for row, name in enumerate(arrays[f"{kind}_names"].tolist()):
            values = arrays.get(f"{kind}/{name}")
            if values is not None and values.size > MAX_RECORDED:
                more = -(-values.size // MAX_RECORDED)
                kept[f"{kind}/{name}"], steps[row] = values.ravel()[::more], steps[row] * more
        kept[f"{kind}_sample_step"] = steps
    return kept


def _first_iterations(arrays: Arrays) -> Arrays:
    """Return the beginning of a run that accumulates, without its final state."""
    rows = len(arrays["step_ni"])
    dropped = ("final", "ema/", "ema_names", "ema_l2", "ema_sum", "ema_absmax", "ema_sample", "ema_updates")
    kept = {
        name: value[:ACCUMULATING_ITERATIONS] if name.startswith("step_") and value.shape[:1] == (rows,) else value
        for name, value in arrays.items()
        if not name.startswith(dropped)
    }
    return kept | {"ema_updates": np.array(int(kept["step_stepped"].sum()))}


CHOSEN: dict[str, Callable[[Arrays], Arrays]] = {
    "bbox_iou": _every_fourth_pair,
    "loss_elements": _all,
    "loss_nc1": _all,
    "loss_nl2": _all,
    "metrics": _all,
    "model_counts": _few_models,
    "nms": _all,
    "schedules": _all,
    "train_common": _start,
    "train_coslr": _sampled_run,
    "train_sgd": _first_iterations,
}

RECORDED_APART = ("loss_extreme",)
"""Vectors that are not in FOLDER, beside those of networks with weights of a seed: raw outputs to -45."""


def select(source: Path, target: Path) -> None:
    """Write the set."""
    for name, part in CHOSEN.items():
        with np.load(source / f"{name}.npz", allow_pickle=False) as archive:
            arrays = part(dict(archive))
        # NumPy also reads LZMA archives, which compress half-precision weights well.
        with zipfile.ZipFile(target / f"{name}.npz", "w") as packed:
            for key, value in arrays.items():
                entry = zipfile.ZipInfo(f"{key}.npy")  # without the time of day: equal arrays give equal files
                entry.compress_type = zipfile.ZIP_LZMA
                with packed.open(entry, "w") as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)


def main() -> int:
    """Write the vectors and return exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.select_vectors", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with all vectors")
    options = parser.parse_args()
    VECTORS.mkdir(exist_ok=True)
    select(options.folder, VECTORS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
