"""Passes over a training pipeline in a child process, to test its memory, threads and files.

`python -m tests.pipelines.pass_over IMAGES FOLDER EPOCHS CACHE BATCHES`: caches go to FOLDER. Prints JSON with the
resident bytes after each epoch and the threads at the end. If BATCHES is not 0, the pipeline is closed after that many
batches of the last epoch.
"""

import gc
import json
import sys
import threading
from pathlib import Path

from graph_train.host.memory import resident_bytes
from kernels.plugin import load_plugin
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.data.index import index_images
from pipelines.pixels.image_cache import CacheKind
from pipelines.settings import BatchSettings
from pipelines.train import TrainPipeline


def main(images: Path, folder: Path, epochs: int, *, cache: CacheKind | None, batches: int) -> None:
    load_plugin("auto")
    index = index_images([images], ("a", "b", "c"), cache_dir=folder)
    settings = BatchSettings(batch_size=16, image_px=320, workers=2, cache=cache, cache_dir=folder)
    pipeline = TrainPipeline(index, AugmentConfig(), settings, seed=0)
    resident = []
    for epoch in range(epochs):
        for number, _ in enumerate(pipeline.epoch(epoch), 1):
            if epoch == epochs - 1 and number == batches:
                break
        gc.collect()
        resident.append(resident_bytes())
    pipeline.close()
    # A progress bar's monitor is tqdm's own and ends with the process.
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print(json.dumps({"resident": resident, "threads": [name for name in left if name != "tqdm_monitor"]}))


if __name__ == "__main__":
    kind: CacheKind | None = None if sys.argv[4] == "none" else sys.argv[4]  # type: ignore[assignment]
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), cache=kind, batches=int(sys.argv[5]))
