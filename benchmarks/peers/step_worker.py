"""Worker that trains in PyTorch, with the same handlers as `benchmarks.step.step_worker`."""

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.channel import serve
from benchmarks.harness.points import l2_norm
from benchmarks.peers.loss import DetectionLoss
from benchmarks.peers.network import Network
from benchmarks.peers.step import TrainStep


class _Session:
    """The objects that `prepare` made."""

    step: TrainStep
    batches: list[tuple[torch.Tensor, torch.Tensor]]
    losses: list[float]


def prepare(folder: str, device: str, threads: int, **options: bool) -> dict[str, Any]:
    """Build the step from the files of `benchmarks.harness.points.write_point` and execute it once."""
    torch.set_num_threads(threads)
    place = torch.device("cpu" if device == "cpu" else f"cuda:{device}")
    point = json.loads((Path(folder) / "point.json").read_text(encoding="utf-8"))
    network = Network(point["network"])
    load_weights(network, Path(folder) / "weights.npz")
    network.to(place)
    criterion = DetectionLoss(point["head"], point["loss"]).to(place)
    _Session.step = TrainStep(network, criterion, point["update"], **options)
    _Session.batches = _batches(Path(folder) / "batches.npz", place)
    _Session.losses = []
    started = time.perf_counter()
    total, parts = _next_step()
    return {
        "first_step_s": time.perf_counter() - started,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "loss": total,
        "loss_parts": parts,
        "versions": {"pytorch": torch.__version__, "python": platform.python_version()},
    }


def load_weights(network: torch.nn.Module, file: Path) -> None:
    """Load all values of our network by name.

    Raises:
        ValueError: names or shapes differ.
    """
    with np.load(file, allow_pickle=False) as arrays:
        values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    try:
        network.load_state_dict(values, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the PyTorch network differs from ours: {error}") from None


def _batches(file: Path, place: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with np.load(file, allow_pickle=False) as arrays:
        pairs = list(zip(arrays["images"], arrays["labels"], strict=True))
    return [
        (torch.from_numpy(images).to(place), torch.from_numpy(_filtered(labels)).to(place)) for images, labels in pairs
    ]


def _filtered(labels: np.ndarray) -> np.ndarray:
    """Convert padded labels (B, T, 5) to (n, 6) with the image number first."""
    image, slot = np.nonzero(labels[:, :, 0] >= 0)
    return np.concatenate((image[:, None].astype(np.float32), labels[image, slot]), axis=1)


def _next_step() -> tuple[float, list[float]]:
    images, labels = _Session.batches[len(_Session.losses) % len(_Session.batches)]
    total, parts = _Session.step(images, labels)
    _Session.losses.append(total)
    return total, parts


def steps(count: int) -> float:
    """Run `count` steps and return the seconds; each reads its loss back, so the device is idle at the end."""
    started = time.perf_counter()
    for _ in range(count):
        _next_step()
    seconds = time.perf_counter() - started
    if not np.isfinite(_Session.losses[-1]):
        raise FloatingPointError(f"the loss became {_Session.losses[-1]}")
    return seconds


def trained() -> dict[str, Any]:
    """Return all losses so far, and the L2 norms of the weights and of their EMA."""
    networks = {"weights": _Session.step.network, "average": _Session.step.average.network}
    norms = {
        name: l2_norm([parameter.detach().cpu().numpy() for parameter in network.parameters()])
        for name, network in networks.items()
    }
    return {"losses": _Session.losses, **norms}


def multiply_accumulates(image_px: int) -> int:
    """Return the multiply-accumulates of one image's forward pass by PyTorch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    parameter = next(_Session.step.network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _Session.step.network(torch.zeros(1, 3, image_px, image_px, device=parameter.device))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    serve({"prepare": prepare, "steps": steps, "trained": trained, "multiply_accumulates": multiply_accumulates})
