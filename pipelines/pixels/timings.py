"""Where the time of a pipeline goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Timings:
    """Seconds spent since the pipeline was made; the stages overlap, so they do not add up to the time on the clock.

    Attributes:
        waiting: the consumer waited for a batch.
        geometry: draws, rectangles and labels.
        reading: bytes of the images, decoding on the host included.
        dali: waiting for DALI, which decodes, and draws where no kernel does.
        pixels: drawing, blending, colour and layout on the host, as far as nothing else was done meanwhile.
        batches: batches handed over.
    """

    waiting: float = 0.0
    geometry: float = 0.0
    reading: float = 0.0
    dali: float = 0.0
    pixels: float = 0.0
    batches: int = 0

    @contextmanager
    def counting(self, stage: str) -> Iterator[None]:
        """Add the time of its body to a stage, also if it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)
