"""What a prediction leaves behind: annotated images and videos, label files, crops, one JSON file."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageShow

from graph_train.detection.label_files import Originals, write_label_file
from graph_train.plots.images import BoxStyle, draw_detections
from graph_train.validation.coco_results import entries_of, id_of_name
from kernels.host.files import write_atomically
from pipelines.data.video import VideoFile
from pipelines.pixels.encoded_images import decode_on_host

Array = npt.NDArray[Any]

LABELS, CROPS, JSON_FILE, CSV_FILE = "labels", "crops", "predictions.json", "predictions.csv"
_COLUMNS = ("file", "frame", "class", "name", "confidence", "x1", "y1", "x2", "y2")
CROP_GAIN, CROP_BORDER_PX = 1.02, 10
"""A crop is this much larger than its box, and then by this border, as in YOLOv5."""
_QUALITY = 95
_WAITING = 64
"""Most images that wait for being written."""
_WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Prediction:
    """The detections in one image or video frame.

    Attributes:
        path: the image or video; what was fetched is there until the prediction ends.
        frame: number in its video, from 1; None of an image.
        image_hw: height and width in px, upright.
        detections: (k, 6) float32: x1, y1, x2, y2 in px, confidence, class; highest confidence first.
        name: what its results are called, relative to the results folder; of an image the annotated file.
        address: where it was fetched from, or the camera or stream; "" of the user's own files.
    """

    path: Path
    frame: int | None
    image_hw: tuple[int, int]
    detections: Array
    name: Path
    address: str = ""

    @property
    def source(self) -> str:
        """The address or the path."""
        return self.address or str(self.path)

    @property
    def stem(self) -> Path:
        """The name of its label file and crops, without ending: that of the image, or of the video and the frame."""
        return (
            self.name.with_suffix("") if self.frame is None else self.name.with_name(f"{self.name.stem}_{self.frame}")
        )


@dataclass(frozen=True)
class OutputSettings:
    """The files to write; `drawing` None draws nothing; what was drawn is saved, shown on the screen, or both."""

    folder: Path
    drawing: BoxStyle | None
    labels: bool
    confidences: bool
    crops: bool
    entries: bool
    table: bool = False
    save_drawn: bool = True
    show: bool = False

    @property
    def anything(self) -> bool:
        """Whether there will be any file."""
        drawn = self.drawing is not None and self.save_drawn
        return drawn or self.labels or self.crops or self.entries or self.table


class PredictionWriter:
    """A writer of prediction files with threads of its own; `close` waits for all of them.

    No two predictions of a run may have one stem.

    Args:
        settings: what is written.
        class_names: by class.
        workers: threads.
        sources: what is looked at, and must still be there afterwards.
    Raises, from any call: OSError if a file cannot be written, ValueError if it would replace a source.
    """

    def __init__(
        self, settings: OutputSettings, class_names: Sequence[str], *, workers: int, sources: Iterable[Path] = ()
    ) -> None:
        self._settings, self._names = settings, tuple(class_names)
        self._originals = Originals(sources)
        self._pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="write")
        self._waiting: list[Future[None]] = []
        self._entries: list[tuple[str, dict[str, Any]]] = []
        self._rows: list[tuple[Any, ...]] = []
        self._table: IO[str] | None = None
        self._stems: dict[int | str, Path] = {}
        self._crops: set[Path] = set()

    def add_image(self, found: Prediction) -> None:
        """Queue everything that belongs to an image; its pixels are decoded again."""
        self._note(found)
        self._settle(_WAITING)
        self._waiting.append(self._pool.submit(self._write_image, found, self._crop_files(found)))

    def add_frame(self, found: Prediction, frame: Array, video: VideoFile | None, times: int = 1) -> None:
        """Write everything that belongs to a frame (h, w, 3) uint8 RGB; append it to a video, once or more often."""
        self._note(found)
        self._write_rows(found, frame, self._crop_files(found))
        if video is not None and self._settings.drawing is not None:
            drawn = draw_detections(frame, found.detections, self._names, self._settings.drawing)
            for _ in range(times):
                video.add(drawn)

    def write_table(self) -> None:
        """Write the table of what there is so far; later rows stand behind it, in their order, not kept in memory."""
        if self._settings.table:
            write_atomically(self._settings.folder / CSV_FILE, _as_csv(self._rows))
            self._rows = []
            self._table = (self._settings.folder / CSV_FILE).open("a", encoding="utf-8", newline="", buffering=1)

    def close(self) -> None:
        """Wait until everything is written, the JSON file in the order of the names."""
        try:
            self._settle(0)
            if self._settings.entries:
                ordered = [entry for _, entry in sorted(self._entries, key=lambda named: named[0])]
                write_atomically(self._settings.folder / JSON_FILE, json.dumps(ordered, allow_nan=False))
            if self._table is None:
                self.write_table()
        finally:
            self.abandon()

    def without_overwriting(self, target: Path) -> Path:
        """Return a place for a file that is written elsewhere; see `Originals.without_overwriting`."""
        return self._originals.without_overwriting(target)

    def abandon(self) -> None:
        """End the threads without what is still waiting."""
        self._pool.shutdown(cancel_futures=True)
        if self._table is not None:
            self._table.close()

    def _settle(self, waiting: int) -> None:
        while len(self._waiting) > waiting:
            self._waiting.pop(0).result()

    def _note(self, found: Prediction) -> None:
        if self._settings.table:
            place = (found.source, "" if found.frame is None else found.frame)
            rows: list[tuple[Any, ...]] = []
            for *box, confidence, number in found.detections.tolist():
                values = (f"{value:.6g}" for value in (confidence, *box))
                rows.append((*place, int(number), self._names[int(number)], *values))
            if self._table is None:
                self._rows += rows
            else:
                csv.writer(self._table, lineterminator="\n").writerows(rows)
        if self._settings.entries:
            for entry in entries_of(found.detections, self._image_id(found.stem), range(len(self._names))):
                named = {**entry, "category_name": self._names[entry["category_id"]], "file_name": found.source}
                self._entries.append((found.source, named if found.frame is None else {**named, "frame": found.frame}))

    def _image_id(self, stem: Path) -> int | str:
        """Return a number if the whole name is one that no other image has, as `01` would after `1`; else the name."""
        number = id_of_name(str(stem))
        return number if self._stems.setdefault(number, stem) == stem else str(stem)

    def _crop_files(self, found: Prediction) -> list[Path]:
        """Return a file for each detection, by their order: `name.jpg`, `name2.jpg`, …; none twice in a run.

        The second object of `1.jpg` would be called like the first one of `12.jpg`, and two classes may share a folder.
        """
        files: list[Path] = []
        numbers: dict[Path, int] = {}
        for row in found.detections if self._settings.crops else ():
            folder = self._settings.folder / CROPS / _folder_name(self._names[int(row[5])])
            number = numbers.get(folder, 1)
            while (file := folder / f"{found.stem}{number if number > 1 else ''}.jpg") in self._crops:
                number += 1
            numbers[folder] = number + 1
            self._crops.add(file)
            files.append(file)
        return files

    def _write_image(self, found: Prediction, crops: Sequence[Path]) -> None:
        drawing = self._settings.drawing
        if drawing is None and not crops:
            self._write_rows(found, None, crops)
            return
        pixels = decode_on_host(found.path)
        self._write_rows(found, pixels, crops)
        if drawing is not None:
            drawn = Image.fromarray(draw_detections(pixels, found.detections, self._names, drawing))
            if self._settings.save_drawn:
                target = self._settings.folder / found.name
                if target.suffix.lower() not in _WRITABLE:
                    target = target.with_suffix(".jpg")
                target.parent.mkdir(parents=True, exist_ok=True)
                drawn.save(self._originals.without_overwriting(target), quality=_QUALITY)
            if self._settings.show:
                ImageShow.show(drawn, title=str(found.name))

    def _write_rows(self, found: Prediction, pixels: Array | None, crops: Sequence[Path]) -> None:
        """Write label file and crops; an image without detections has none, as in YOLOv5."""
        folder = self._settings.folder
        if self._settings.labels and len(found.detections):
            path = folder / LABELS / f"{found.stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label_file(
                self._originals.without_overwriting(path),
                found.detections,
                image_hw=found.image_hw,
                confidence=self._settings.confidences,
            )
        if pixels is not None and crops:
            for row, file in zip(found.detections, crops, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                left, top, right, bottom = crop_box(row[:4], found.image_hw)
                Image.fromarray(pixels[top:bottom, left:right]).save(
                    self._originals.without_overwriting(file), quality=_QUALITY
                )


def _as_csv(rows: Sequence[tuple[Any, ...]]) -> str:
    """Return the rows in the order of files and frames, the most certain object of each first; boxes in px."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    ordered: list[tuple[Any, ...]] = sorted(rows, key=lambda row: (row[0], row[1] or 0))
    writer.writerows(ordered)
    return text.getvalue()


def crop_box(corners: Array, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a crop in px: a box made larger, inside the image and never empty."""
    height, width = image_hw
    centre, sides = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
    half = (sides * CROP_GAIN + CROP_BORDER_PX) / 2
    low = np.clip((centre - half).astype(np.int64), 0, (width - 1, height - 1))
    high = np.clip((centre + half).astype(np.int64), low + 1, (width, height))
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _folder_name(class_name: str) -> str:
    """Return the class name without what a folder cannot be called."""
    name = "".join("_" if character in "/\\\0" else character for character in class_name)
    return name if name.strip(".") else "_"
