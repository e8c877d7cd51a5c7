"""Worker that trains whole epochs in PyTorch, fed by the OpenCV mosaic loader through a DataLoader."""

import json
import platform
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from benchmarks.harness.channel import serve
from benchmarks.peers.loss import DetectionLoss
from benchmarks.peers.network import Network
from benchmarks.peers.opencv_loader import Images, MosaicLoader
from benchmarks.peers.step import TrainStep
from benchmarks.peers.step_worker import load_weights

Sample = tuple[torch.Tensor, torch.Tensor]


class Mosaics(Dataset[Sample]):
    """Mosaic samples; each DataLoader process has its own loader, seeded by PyTorch."""

    def __init__(self, images: Images, image_px: int, seed: int) -> None:
        self._images, self._image_px, self._seed = images, image_px, seed
        self._loader: MosaicLoader | None = None

    def __len__(self) -> int:
        return len(self._images.paths)

    def __getitem__(self, index: int) -> Sample:
        """Return an image (3, S, S) uint8 and labels (n, 6) with image number 0."""
        if self._loader is None:
            info = get_worker_info()
            self._loader = MosaicLoader(self._images, self._image_px, info.seed if info else self._seed)
        image, rows = self._loader.sample(index)
        return torch.from_numpy(image), torch.from_numpy(np.insert(rows, 0, 0, axis=1).astype(np.float32))


def collate(samples: list[Sample]) -> Sample:
    """Return images (B, 3, S, S) and labels (n, 6) with the image number in the first column."""
    labels = []
    for number, (_, rows) in enumerate(samples):
        rows[:, 0] = number
        labels.append(rows)
    return torch.stack([image for image, _ in samples]), torch.cat(labels)


class _Session:
    step: TrainStep
    batches: DataLoader[Sample]
    settings: list[dict[str, Any]]
    done = 0


def prepare(
    folder: str,
    device: str,
    threads: int,
    workers: int,
    *,
    options: dict[str, bool],
    seed: int = 0,
    cache: bool = False,
) -> dict[str, Any]:
    """Build the network of point.json and the loader of images.json; return versions.

    Args:
        folder: folder with the files of `benchmarks.harness.points`.
        device, threads: device and CPU threads of the training.
        workers: DataLoader processes; 0 loads in the training process.
        options: options of `TrainStep`.
        seed: seed of shuffling and augmentation.
        cache: decode and scale each image once instead of each time it is in a mosaic.
    """
    torch.set_num_threads(threads)
    place = torch.device("cpu" if device == "cpu" else f"cuda:{device}")
    point = json.loads((Path(folder) / "point.json").read_text(encoding="utf-8"))
    data = json.loads((Path(folder) / "images.json").read_text(encoding="utf-8"))
    network = Network(point["network"])
    load_weights(network, Path(folder) / "weights.npz")
    criterion = DetectionLoss(point["head"], point["loss"]).to(place)
    _Session.step = TrainStep(network.to(place), criterion, point["update"], **options)
    labels = [np.array(rows, np.float32).reshape(-1, 5) for rows in data["labels"]]
    images = Images(data["paths"], labels)
    if cache:
        loader = MosaicLoader(images, point["point"]["imgsz"], seed)
        images.pixels = [loader.scaled_image(number) for number in range(len(images.paths))]
    _Session.batches = DataLoader(
        Mosaics(images, point["point"]["imgsz"], seed),
        batch_size=point["point"]["batch_size"],
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=place.type == "cuda",
    )
    _Session.settings = data["steps"]
    versions = {"pytorch": torch.__version__, "opencv": cv2.__version__, "python": platform.python_version()}
    return {"versions": versions}


def epoch() -> dict[str, float]:
    """Train one epoch; return its seconds, images and mean total loss."""
    started, images, losses = time.perf_counter(), 0, []
    device = next(_Session.step.network.parameters()).device
    _Session.step.drop_gradients()
    for pixels, labels in _Session.batches:
        settings = _Session.settings[_Session.done]
        _Session.done += 1
        _Session.step.set_rates(settings["learning_rates"], settings["momentum"])
        _, parts = _Session.step(
            pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True), update=settings["update"]
        )
        losses.append(sum(parts))
        images += len(pixels)
    return {"seconds": time.perf_counter() - started, "images": images, "loss": float(np.mean(losses))}


def save_average(file: str) -> None:
    """Write the EMA weights (.npz): name -> values."""
    average = _Session.step.average.network.state_dict()
    np.savez(file, **{name: value.cpu().numpy() for name, value in average.items()})


if __name__ == "__main__":
    serve({"prepare": prepare, "epoch": epoch, "save_average": save_average})
