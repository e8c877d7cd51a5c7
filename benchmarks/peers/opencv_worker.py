"""Worker of `graph-bench pipeline` for another interpreter: the OpenCV loader in several processes.

The processes write whole batches to memory shared with the consumer and prefetch two batches each: the minimum that a
DataLoader with as many workers has to do.
"""

import json
import multiprocessing as mp
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.harness.channel import serve
from benchmarks.peers.opencv_loader import Images, MosaicLoader

_PREFETCHED_BATCHES = 2
_STAGE_SAMPLES = 100
_prepared: dict[str, "_Prepared"] = {}


@dataclass(frozen=True)
class _Prepared:
    images: Images
    image_px: int
    batch: int

    @property
    def batch_bytes(self) -> int:
        return self.batch * 3 * self.image_px**2


def prepare(data: str, image_px: int, batch: int, cache: bool) -> dict[str, Any]:
    """Read the list of images and labels, decode the images to be cached, and return versions."""
    listed = json.loads(Path(data).read_text(encoding="utf-8"))
    labels = [np.array(rows, np.float32).reshape(-1, 5) for rows in listed["labels"]]
    images = Images(listed["paths"], labels)
    if cache:
        loader = MosaicLoader(images, image_px, 0)
        images.pixels = [loader.scaled_image(number) for number in range(len(images.paths))]
    _prepared["it"] = _Prepared(images, image_px, batch)
    versions = {"opencv": cv2.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return {"versions": versions}


def once(workers: int, count: int) -> dict[str, float]:
    """Return the images per second of about `count` samples after the first batch of each process.

    Also return the CPU time per image in ms.
    """
    used = _prepared["it"]
    order = np.random.default_rng(0).integers(0, len(used.images.paths), count + workers * used.batch).tolist()
    batches = [order[start : start + used.batch] for start in range(0, len(order), used.batch)]
    # Forked processes share the images, so that the cache is not copied.
    context = mp.get_context("fork")
    free, ready = context.Queue(), context.Queue()
    slots = _PREFETCHED_BATCHES * workers
    shared = shared_memory.SharedMemory(create=True, size=slots * used.batch_bytes)
    for slot in range(slots):
        free.put(slot)
    before = _children_seconds()
    processes = [
        context.Process(target=_work, args=((shared.name, slots), batches[n::workers], n, (free, ready)), daemon=True)
        for n in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        speed = _consume(ready, free, workers)
    finally:
        for process in processes:
            process.join()
        shared.close()
        shared.unlink()
    return {"images_per_second": speed, "cpu_ms": (_children_seconds() - before) / len(order) * 1000}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _work(memory: tuple[str, int], batches: Sequence[list[int]], seed: int, queues: tuple[Any, Any]) -> None:
    used, (free, ready) = _prepared["it"], queues
    loader = MosaicLoader(used.images, used.image_px, seed)
    shared = shared_memory.SharedMemory(memory[0])
    shape = (memory[1], used.batch, 3, used.image_px, used.image_px)
    slots: np.ndarray = np.ndarray(shape, np.uint8, shared.buf)
    for indices in batches:
        samples = [loader.sample(index) for index in indices]
        slot = free.get()
        np.stack([image for image, _ in samples], out=slots[slot, : len(samples)])
        labels = np.concatenate([np.insert(rows, 0, n, axis=1) for n, (_, rows) in enumerate(samples)])
        ready.put((slot, labels, len(samples)))
        del samples
    ready.put(None)
    del slots
    shared.close()


def _consume(ready: Any, free: Any, workers: int) -> float:
    """Consume all batches and return the images per second after the first batch of each process.

    Args:
        ready: yields slot, labels and image count of each batch, and None when a process has finished.
        free: takes back consumed slots.
        workers: number of processes.
    """
    left, seen, images, start, end = workers, 0, 0, 0.0, 0.0
    while left:
        made = ready.get()
        if made is None:
            left -= 1
            continue
        free.put(made[0])
        seen += 1
        end = time.perf_counter()
        if seen == workers:
            start = end
        elif seen > workers:
            images += made[2]
    return images / (end - start)


def stages() -> dict[str, float]:
    """Return the images per second of each stage alone, in one process."""
    used = _prepared["it"]
    loader = MosaicLoader(used.images, used.image_px, 0)
    for index in range(_STAGE_SAMPLES):
        loader.sample(index % len(used.images.paths))
    return {name: _STAGE_SAMPLES / spent for name, spent in loader.seconds.items() if spent}


def save_samples(count: int, file: str) -> None:
    """Write samples as arrays: images (n, 3, side, side) and labels (m, 6) [image, class, cx, cy, w, h]."""
    used = _prepared["it"]
    loader = MosaicLoader(used.images, used.image_px, 0)
    samples = [loader.sample(index % len(used.images.paths)) for index in range(count)]
    labels = np.concatenate([np.insert(rows, 0, number, axis=1) for number, (_, rows) in enumerate(samples)])
    np.savez(file, images=np.stack([image for image, _ in samples]), labels=labels)


if __name__ == "__main__":
    serve({"prepare": prepare, "once": once, "stages": stages, "save_samples": save_samples})
