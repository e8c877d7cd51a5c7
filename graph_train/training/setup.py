"""The setup of a run before the network is built: settings, data and device."""

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from graph_train.engine.precision import check_gpu
from graph_train.host.devices import select_device
from graph_train.ranks.exchange import Exchange
from graph_train.ranks.launcher import RankInfo
from graph_train.ranks.placement import Placement
from graph_train.settings.hyperparameters import AUGMENTATIONS, Hyperparameters
from graph_train.settings.train_options import TrainOptions
from kernels.host.paths import printable
from kernels.host.quantity import quantity
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.data.dataset import Dataset, load_dataset
from pipelines.data.index import ImageIndex, index_images
from pipelines.data.problems import count
from pipelines.settings import worker_threads
from pipelines.shard import Shard

LOG = logging.getLogger("graph_train")
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Data:
    """The indexed data set of a run."""

    dataset: Dataset
    train: ImageIndex
    val: ImageIndex

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.train.class_names

    @cached_property
    def fingerprint(self) -> str:
        """A digest of image names, sizes in px and bytes, and labels, independent of where the files are."""
        digest = hashlib.blake2b(digest_size=16)
        for index in (self.train, self.val):
            digest.update(repr((index.paths.names, index.class_names)).encode())
            for sizes in (index.sizes, index.formats.file_bytes):
                digest.update(np.ascontiguousarray(sizes).tobytes())
            # The rows of each image, without an array per image, which takes seconds for a large data set.
            rows = np.ascontiguousarray(index.labels.rows)
            content = rows.reshape(-1).view(np.uint8).data
            ends = (index.labels.ends * rows.strides[0]).tolist()
            for start, end in pairwise(ends):
                digest.update(content[start:end])
                digest.update(b"|")
        return digest.hexdigest()


def load_data(options: TrainOptions) -> Data:
    """Find and index the train and val splits, and log their problems.

    Raises:
        ValueError: the data set is broken or has no labels, or it has any problem and `--strict` is given.
    """
    dataset = load_dataset(options.data.data, allow_download=options.data.allow_download)
    if repeated := dataset.duplicate_name():
        if options.data.strict:
            raise ValueError(f"strict: {printable(dataset.file)}: {repeated}")
        LOG.warning("%s: %s", printable(dataset.file), repeated)
    indices = []
    for split in ("train", "val"):
        index = index_images(
            dataset.split(split),
            dataset.class_names,
            single_class=options.data.single_cls,
            progress=split,
            strict=options.data.strict,
        )
        _report_problems(split, index)
        unlabelled = index.missing_labels(dataset.split(split))
        if unlabelled and (split == "train" or options.data.strict):
            raise ValueError(f"{printable(dataset.file)}: {split}: {unlabelled}")
        if unlabelled:
            LOG.warning("%s: %s; all metrics will be 0", split, unlabelled)
        indices.append(index)
    return Data(dataset, *indices)


def run_device(options: TrainOptions, rank: RankInfo) -> str:
    """Return the device of this process.

    Raises:
        ValueError: see `select_device` and `check_gpu`.
    """
    device = select_device(options.engine.device, None if rank.single_rank else rank.local_rank)
    check_gpu(device, options.engine.kernels, ranks=rank.world)  # type: ignore[arg-type]
    return device


def _report_problems(split: str, index: ImageIndex) -> None:
    """Log the size of a split and its first few problems."""
    errors = count(index.problems, "error")
    LOG.info(
        "%s: %s, %s, %d without labels; %s, %s",
        split,
        quantity(len(index), "image"),
        quantity(index.num_boxes, "label"),
        index.num_background,
        quantity(errors, "error"),
        quantity(len(index.problems) - errors, "warning"),
    )
    for problem in index.problems[:SHOWN_PROBLEMS]:
        LOG.info("  %s", problem)
    if len(index.problems) > SHOWN_PROBLEMS:
        LOG.info("  … and %d more, see problems.txt in the run folder", len(index.problems) - SHOWN_PROBLEMS)


@dataclass(frozen=True)
class Setup:
    """Settings, data and device of a run."""

    options: TrainOptions
    hyp: Hyperparameters
    data: Data
    device: str
    image_px: int
    """Side of the training images, a multiple of the network's stride."""
    rank: RankInfo = RankInfo()  # noqa: RUF009 - a frozen value
    """This process's rank."""

    @property
    def placement(self) -> Placement:
        """Placement of the run's tensors."""
        return Placement(self.device, self.exchange.rank, self.exchange.ranks)

    @property
    def exchange(self) -> Exchange:
        """Collectives over the ranks of the job."""
        return Exchange(self.rank.rank, self.rank.world)

    @property
    def shard(self) -> Shard:
        """This rank's part of every batch."""
        return Shard(self.exchange.rank, self.exchange.ranks)

    @property
    def augment(self) -> AugmentConfig:
        """The augmentation hyper-parameters."""
        shared = {name: getattr(self.hyp, name) for name in AUGMENTATIONS}
        return AugmentConfig(**shared, rect=self.options.data.rect, quad=self.options.data.quad)

    @property
    def threads(self) -> int:
        """Number of DALI threads: `--workers`, but at most one per core."""
        return worker_threads(self.options.data.workers)
