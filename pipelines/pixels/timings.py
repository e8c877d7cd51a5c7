"""Timing of a pipeline's stages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Timings:
    """Seconds spent in each stage since the start of the pipeline; stages overlap.

    Attributes:
        waiting: the consumer waiting for a batch.
        geometry: random draws, rectangles and labels.
        reading: reading images, including decoding on the host.
        dali: waiting for DALI, which decodes and, without the plugin's kernel, draws.
        pixels: waiting for drawing, blending, colour and layout on the host.
        batches: number of batches returned.
    """

    waiting: float = 0.0
    geometry: float = 0.0
    reading: float = 0.0
    dali: float = 0.0
    pixels: float = 0.0
    batches: int = 0

    @contextmanager
    def counting(self, stage: str) -> Iterator[None]:
        """Add the time inside the context to a stage, also if it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)
