"""Settings that training and validation batches share."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.index import ImageIndex
from pipelines.pixels.image_cache import CacheKind, ImageStore, open_images
from pipelines.shard import Shard


def worker_threads(workers: int) -> int:
    """Return the number of threads for `--workers`: at most one per core, at least one."""
    return max(1, min(workers, os.cpu_count() or 1))


@dataclass(frozen=True)
class BatchSettings:
    """Size of the batches, and how they are made.

    Attributes:
        batch_size: maximum number of samples per batch, over all ranks.
        image_px: long side of the images without border; a multiple of `stride`.
        workers: number of decoding threads, and of drawing threads.
        device: "cpu" or, for instance, "cuda:1" to decode and draw on the second GPU.
        stride: stride of the network; sides of rectangular batches are multiples of it.
        shard: this rank's part of every batch.
        cache, cache_dir: see `pipelines.pixels.image_cache.open_images`.
    """

    batch_size: int
    image_px: int
    workers: int
    device: str = "cpu"
    stride: int = 32
    shard: Shard = Shard()  # noqa: RUF009 - a frozen value
    cache: CacheKind | None = None
    cache_dir: Path | None = None

    def check(self, split: str, index: ImageIndex) -> None:
        """Reject an empty split, and numbers that no pipeline accepts.

        Raises:
            ValueError: names the setting.
        """
        if not len(index):
            raise ValueError(f"the {split} split has no usable images; see the reported problems of the data set")
        for name, value, least in (
            ("batch size", self.batch_size, 1),
            ("image size", self.image_px, self.stride),
            ("workers", self.workers, 1),
        ):
            if value < least:
                raise ValueError(f"{name} {value}: must be at least {least}")
        if self.image_px % self.stride:
            raise ValueError(f"image size {self.image_px}: must be a multiple of the stride {self.stride}")

    def open_images(self, split: str, index: ImageIndex) -> ImageStore:
        """Open the images of a split, and fill the cache if there is one.

        Raises:
            ValueError, OSError: see `pipelines.pixels.image_cache.open_images`.
        """
        progress = f"Caching {split} images"
        return open_images(index, self.cache, folder=self.cache_dir, workers=self.workers, progress=progress)
