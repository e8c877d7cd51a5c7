"""Short trainings for tests: eight images of rectangles, a tiny network, in this process."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from graph_train.hooks.callbacks import Callbacks, TrainingHooks
from graph_train.launch.train import train
from graph_train.settings.hyperparameters import load_hyperparameters
from graph_train.settings.train_options import options_from_flags
from graph_train.training.assembly import TrainingRun, assemble
from kernels.runtime import flow
from models.weights import save_weights
from tests.graph_train.tiny import TINY, steepen, tiny_network

TRAIN_IMAGES, VAL_IMAGES = 8, 4
WIDTH, HEIGHT = 96, 64
CLASSES = ("red", "green", "blue")
COCO_NUMBERS = (3, 1, 4, 15)
"""Image ids of the four validation images in COCO's layout."""
_COLOURS = ((220, 40, 40), (40, 200, 40), (60, 60, 220))


def write_data_set(root: Path, train_images: int = TRAIN_IMAGES) -> Path:
    """Write images with one or two boxes each, except the last train image, and return the dataset yaml."""
    random = np.random.default_rng(7)
    for split, count in (("train", train_images), ("val", VAL_IMAGES)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            picture, rows = Image.new("RGB", (WIDTH, HEIGHT), (110, 110, 110)), []
            empty = split == "train" and number == count - 1
            for category in () if empty else (number % 3, 0)[: 1 + number % 2]:
                x, y = int(random.integers(0, 60)), int(random.integers(0, 30))
                ImageDraw.Draw(picture).rectangle((x, y, x + 30, y + 26), fill=_COLOURS[category])
                rows.append(f"{category} {(x + 15) / WIDTH} {(y + 13) / HEIGHT} {30 / WIDTH} {26 / HEIGHT}\n")
            picture.save(root / "images" / split / f"{number}.jpg")
            (root / "labels" / split / f"{number}.txt").write_text("".join(rows))
    path = root / "data.yaml"
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": list(CLASSES)}
    path.write_text(yaml.safe_dump(content))
    return path


def laid_out_as_coco(data: Path, root: Path, *, annotations: bool = True) -> Path:
    """Copy the data set of `write_data_set` into the layout of COCO 2017; return its yaml."""
    coco = root / "coco"
    pictures: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    (coco / "annotations").mkdir(parents=True)
    for kind, split in ((kind, split) for kind in ("images", "labels") for split in ("train", "val")):
        (coco / kind / f"{split}2017").mkdir(parents=True)
        for file in sorted((data.parent / kind / split).iterdir()):
            stem = file.stem if split == "train" else f"{COCO_NUMBERS[int(file.stem)]:012d}"
            (coco / kind / f"{split}2017" / f"{stem}{file.suffix}").write_bytes(file.read_bytes())
    for split in ("train", "val"):
        names = sorted(file.name for file in (coco / f"images/{split}2017").iterdir())
        (coco / f"{split}2017.txt").write_text("".join(f"./images/{split}2017/{name}\n" for name in names))
    for file in sorted((coco / "images/val2017").iterdir()):
        (width, height), number = Image.open(file).size, int(file.stem)
        pictures.append({"id": number, "file_name": file.name, "width": width, "height": height})
        for row in (coco / "labels/val2017" / f"{file.stem}.txt").read_text().splitlines():
            category, x, y, w, h = map(float, row.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            labels.append({"id": len(labels), "image_id": number, "category_id": 10 + int(category), "bbox": box})
    categories = [{"id": 10 + number, "name": name} for number, name in enumerate(CLASSES)]
    if annotations:
        content = {"images": pictures, "annotations": labels, "categories": categories}
        (coco / "annotations/instances_val2017.json").write_text(json.dumps(content))
    path = root / "few.yaml"
    path.write_text(
        yaml.safe_dump({"path": "coco", "train": "train2017.txt", "val": "val2017.txt", "names": list(CLASSES)})
    )
    return path


def write_hyp(folder: Path, **values: float) -> Path:
    """Write a hyper-parameter file: scratch-low with some values changed."""
    path = folder / f"hyp{'-'.join(f'{name}{value}' for name, value in values.items())}.yaml"
    low = load_hyperparameters("hyp.scratch-low.yaml").as_dict()
    path.write_text(yaml.safe_dump({**low, **values}))
    return path


def detecting(folder: Path, data: Path) -> dict[str, Any]:
    """Return flags of a training whose network has detections from the start and hardly changes."""
    path = folder / "detecting.safetensors"
    if not path.exists():
        photos = [Image.open(file) for file in sorted((data.parent / "images" / "val").glob("*.jpg"))]
        images = np.stack([np.asarray(photo.resize((64, 64))).transpose(2, 0, 1) for photo in photos])
        network = tiny_network(seed=3).train()
        with flow.no_grad():
            for _ in range(150):  # lets the running statistics converge to those of these images
                network(flow.tensor(images.astype(np.float32) / 255))
        steepen(network, images)
        network.names = list(CLASSES)
        save_weights(network, path)
    return {"weights": path, "cfg": "", "hyp": write_hyp(folder, lr0=1e-7, warmup_bias_lr=0.0), "noautoanchor": True}


@dataclass
class Recorder(TrainingHooks):
    """A callback that records batches and hook names, and stops the run after `stop_after` batches."""

    callbacks: Callbacks
    stop_after: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    losses: list[tuple[float, ...]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    saved: list[int] = field(default_factory=list)

    def on_train_batch_end(  # noqa: PLR0917 - the reference's arguments
        self, model: Any, ni: int, imgs: Any, targets: Any, paths: Sequence[str], vals: Sequence[float]
    ) -> None:
        self.shapes.append(tuple(imgs.shape))
        self.losses.append(tuple(vals))
        self.files |= {Path(path).name for path in paths}
        self.callbacks.stop_training = len(self.shapes) == self.stop_after

    def on_model_save(self, last: Path, epoch: int, final_epoch: bool, best_fitness: float, fi: float) -> None:
        assert last.exists()
        self.saved.append(epoch)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    folder: Path
    recorded: Recorder
    result: Any

    @property
    def rows(self) -> list[dict[str, float]]:
        """Rows of `results.csv`, one per epoch."""
        with (self.folder / "results.csv").open(encoding="utf-8") as file:
            return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    @property
    def names(self) -> set[str]:
        """Names of the files in the run folder, weights included."""
        return {path.name for path in self.folder.rglob("*") if path.is_file()}

    @property
    def log(self) -> str:
        return (self.folder / "train.log").read_text(encoding="utf-8")


class TrainingRunner:
    """Runner of trainings in subfolders of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = write_data_set(root / "set")
        self.cfg = root / "tiny.yaml"
        self.cfg.write_text(yaml.safe_dump(TINY))
        self._count = 0

    def flags(self, **flags: Any) -> dict[str, Any]:
        """Return the flags with the defaults: two batches of four at 64 px, in eager mode."""
        common = {
            "data": self.data,
            "cfg": self.cfg,
            "imgsz": 64,
            "batch_size": 4,
            "workers": 2,
            "graph": False,
            "noplots": True,
            "loggers": "csv",
            "epochs": 1,
            "device": "cpu",
        }
        return {**common, **flags}

    def assemble(self, **flags: Any) -> TrainingRun:
        """Build a run without training it."""
        options = options_from_flags(**self.flags(**flags))
        return assemble(options, load_hyperparameters(options.optim.hyp))

    def train(self, *, stop_after: int = 0, **flags: Any) -> FinishedRun:
        """Train in a new folder, unless `project` is given."""
        self._count += 1
        folder = {"project": self.root / "runs", "name": f"run{self._count}"}
        return self.train_as_given(stop_after=stop_after, **self.flags(**{**folder, **flags}))

    def train_as_given(self, *, stop_after: int = 0, **flags: Any) -> FinishedRun:
        """Train with exactly these flags."""
        callbacks = Callbacks()
        recorded = Recorder(callbacks, stop_after=stop_after)
        callbacks.add(recorded)
        # Generations of an evolution train in other processes, without callbacks.
        result = train(**flags) if flags.get("evolve") else train(callbacks=callbacks, **flags)
        assert callbacks.failed == []
        folder = result.folder if hasattr(result, "folder") else result.yaml_file.parent
        return FinishedRun(folder, recorded, result)

    def detecting(self, **flags: Any) -> dict[str, Any]:
        """Return flags of a run whose network has detections from the start and hardly changes, so its mAP is not 0."""
        return {**detecting(self.root, self.data), **flags}

    def hyp(self, **values: float) -> Path:
        """Write a hyper-parameter file: scratch-low with some values changed."""
        return write_hyp(self.root, **values)
