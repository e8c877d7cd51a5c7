"""Output files of a prediction: annotated images and videos, label files, crops, JSON and CSV."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graph_train.detection.label_files import ProtectedFiles, write_label_file
from graph_train.plots.images import BoxStyle, draw_detections
from graph_train.validation.coco_results import id_of_name, result_entries
from kernels.host.files import write_atomically
from kernels.host.paths import fitting_name
from pipelines.data.video import VideoFile
from pipelines.pixels.encoded_images import picture_on_host

Array = npt.NDArray[Any]

LABELS, CROPS, JSON_FILE, CSV_FILE = "labels", "crops", "predictions.json", "predictions.csv"
_COLUMNS = ("file", "frame", "class", "name", "confidence", "x1", "y1", "x2", "y2")
CROP_GAIN, CROP_BORDER_PX = 1.02, 10
"""A crop is the box enlarged by this factor and then by this border, as in YOLOv5."""
_QUALITY = 95
_MAX_QUEUED = 64
"""Maximum number of images waiting to be written."""
_WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Prediction:
    """The detections in one image or video frame.

    Attributes:
        path: the image or video file; a downloaded file exists until the prediction ends.
        frame: frame number in the video, from 1; None for an image.
        image_hw: height and width in px, after applying the EXIF orientation.
        detections: (k, 6) float32: x1, y1, x2, y2 in px, confidence, class; sorted by decreasing confidence.
        name: name of its results, relative to the results folder; for an image, the annotated file.
        address: the URL it was downloaded from, or the camera or stream; "" for a local file.
    """

    path: Path
    frame: int | None
    image_hw: tuple[int, int]
    detections: Array
    name: Path
    address: str = ""

    @property
    def source(self) -> str:
        """The URL or the path."""
        return self.address or str(self.path)

    @property
    def stem(self) -> Path:
        """Name of its label file and crops without suffix: that of the image, or of the video and frame."""
        return (
            self.name.with_suffix("") if self.frame is None else self.name.with_name(f"{self.name.stem}_{self.frame}")
        )


@dataclass(frozen=True)
class OutputSettings:
    """The outputs to produce. Annotated images, unless `drawing` is None, are saved, shown on the screen, or both."""

    folder: Path
    drawing: BoxStyle | None
    labels: bool
    confidences: bool
    crops: bool
    entries: bool
    table: bool = False
    save_annotated: bool = True
    show: bool = False

    @property
    def writes_files(self) -> bool:
        """Whether any file will be written."""
        annotated = self.drawing is not None and self.save_annotated
        return annotated or self.labels or self.crops or self.entries or self.table


class PredictionWriter:
    """Writer of prediction files that uses a thread pool; `close` waits until all files are written.

    The stems of all predictions of a run must be distinct. Any call may raise OSError if a file cannot be written, or
    ValueError if it would overwrite a source.

    Args:
        settings: the outputs to produce.
        class_names: class names by class number.
        workers: number of threads.
        sources: the source files, which must not be overwritten.
    """

    def __init__(
        self, settings: OutputSettings, class_names: Sequence[str], *, workers: int, sources: Iterable[Path] = ()
    ) -> None:
        self._settings, self._names = settings, tuple(class_names)
        self._protected = ProtectedFiles(sources)
        self._pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="write")
        self._queue: list[Future[None]] = []
        self._entries: list[tuple[str, dict[str, Any]]] = []
        self._rows: list[tuple[Any, ...]] = []
        self._table: IO[str] | None = None
        self._stems: dict[int | str, Path] = {}
        self._crops: set[Path] = set()

    def add_image(self, prediction: Prediction) -> None:
        """Queue the files of an image, which is decoded again for them."""
        self._record(prediction)
        self._wait_for_queue(_MAX_QUEUED)
        self._queue.append(self._pool.submit(self._write_image, prediction, self._crop_files(prediction)))

    def add_frame(self, prediction: Prediction, frame: Array, video: VideoFile | None, times: int = 1) -> None:
        """Write the files of a frame (h, w, 3) uint8 RGB, and append it `times` times to the annotated video."""
        self._record(prediction)
        picture = Image.fromarray(frame)
        self._write_rows(prediction, picture, self._crop_files(prediction))
        if video is not None and self._settings.drawing is not None:
            draw_detections(picture, prediction.detections, self._names, self._settings.drawing)
            annotated = np.asarray(picture)
            for _ in range(times):
                video.add(annotated)

    def write_table(self) -> None:
        """Write the rows so far to the CSV file; later rows are appended at once instead of being kept in memory."""
        if self._settings.table:
            write_atomically(self._settings.folder / CSV_FILE, _as_csv(self._rows))
            self._rows = []
            self._table = (self._settings.folder / CSV_FILE).open("a", encoding="utf-8", newline="", buffering=1)

    def close(self) -> None:
        """Wait until everything is written; the JSON entries are sorted by source."""
        try:
            self._wait_for_queue(0)
            if self._settings.entries:
                ordered = [entry for _, entry in sorted(self._entries, key=lambda named: named[0])]
                write_atomically(self._settings.folder / JSON_FILE, json.dumps(ordered, allow_nan=False))
            if self._table is None:
                self.write_table()
        finally:
            self.abandon()

    def without_overwriting(self, target: Path) -> Path:
        """Check the path of a file that the caller writes, see `ProtectedFiles.without_overwriting`."""
        return self._protected.without_overwriting(target)

    def abandon(self) -> None:
        """Stop the threads and discard queued files."""
        self._pool.shutdown(cancel_futures=True)
        if self._table is not None:
            self._table.close()

    def _wait_for_queue(self, length: int) -> None:
        while len(self._queue) > length:
            self._queue.pop(0).result()

    def _record(self, prediction: Prediction) -> None:
        if self._settings.table:
            place = (_utf8(prediction.source), "" if prediction.frame is None else prediction.frame)
            rows: list[tuple[Any, ...]] = []
            for *box, confidence, number in prediction.detections.tolist():
                values = (f"{value:.6g}" for value in (confidence, *box))
                rows.append((*place, int(number), self._names[int(number)], *values))
            if self._table is None:
                self._rows += rows
            else:
                csv.writer(self._table, lineterminator="\n").writerows(rows)
        if self._settings.entries:
            image_id, categories = self._image_id(prediction.stem), range(len(self._names))
            source = _utf8(prediction.source)
            for entry in result_entries(prediction.detections, image_id, categories):
                named = {**entry, "category_name": self._names[entry["category_id"]], "file_name": source}
                frame = {} if prediction.frame is None else {"frame": prediction.frame}
                self._entries.append((prediction.source, {**named, **frame}))

    def _image_id(self, stem: Path) -> int | str:
        """Return the number in a numeric name, unless another image has it (`1` and `01`); else the name."""
        number = id_of_name(str(stem))
        return number if self._stems.setdefault(number, stem) == stem else str(stem)

    def _crop_files(self, prediction: Prediction) -> list[Path]:
        """Return a crop file for each detection: `name.jpg`, `name2.jpg`, …; skips names used before in this run.

        Collisions happen: the second object of `1.jpg` has the name of the first of `12.jpg`, and classes may share a
        folder.
        """
        files: list[Path] = []
        numbers: dict[Path, int] = {}
        for row in prediction.detections if self._settings.crops else ():
            folder = self._settings.folder / CROPS / _folder_name(self._names[int(row[5])])
            number = numbers.get(folder, 1)
            stem = folder / prediction.stem
            while (
                file := stem.with_name(fitting_name(stem.name, f"{number if number > 1 else ''}.jpg"))
            ) in self._crops:
                number += 1
            numbers[folder] = number + 1
            self._crops.add(file)
            files.append(file)
        return files

    def _write_image(self, prediction: Prediction, crops: Sequence[Path]) -> None:
        drawing = self._settings.drawing
        if drawing is None and not crops:
            self._write_rows(prediction, None, crops)
            return
        height, width = prediction.image_hw
        picture = picture_on_host(prediction.path, (width, height))
        self._write_rows(prediction, picture, crops)
        if drawing is not None:
            draw_detections(picture, prediction.detections, self._names, drawing)
            if self._settings.save_annotated:
                target = self._settings.folder / prediction.name
                if target.suffix.lower() not in _WRITABLE:
                    target = target.with_suffix(".jpg")
                target.parent.mkdir(parents=True, exist_ok=True)
                _save(picture, self._protected.without_overwriting(target))
            if self._settings.show:
                picture.show(title=str(prediction.name))

    def _write_rows(self, prediction: Prediction, picture: Image.Image | None, crops: Sequence[Path]) -> None:
        """Write the label file and crops; as in YOLOv5, an image without detections has none."""
        folder = self._settings.folder
        if self._settings.labels and len(prediction.detections):
            path = folder / LABELS / f"{prediction.stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label_file(
                self._protected.without_overwriting(path),
                prediction.detections,
                image_hw=prediction.image_hw,
                confidence=self._settings.confidences,
            )
        if picture is not None and crops:
            for row, file in zip(prediction.detections, crops, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                crop = picture.crop(crop_box(row[:4], prediction.image_hw))
                _save(crop, self._protected.without_overwriting(file))


def _save(image: Image.Image, file: Path) -> None:
    # Pillow finds no suffix in names such as `..jpg`.
    image.save(file, format=Image.registered_extensions()[file.suffix.lower()], quality=_QUALITY)


def _as_csv(rows: Sequence[tuple[Any, ...]]) -> str:
    """Return the rows as CSV, sorted by file and frame."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    ordered: list[tuple[Any, ...]] = sorted(rows, key=lambda row: (row[0], row[1] or 0))
    writer.writerows(ordered)
    return text.getvalue()


def crop_box(corners: Array, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a crop in px: the enlarged box, clipped to the image, at least 1 x 1 px."""
    height, width = image_hw
    centre, sides = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
    half = (sides * CROP_GAIN + CROP_BORDER_PX) / 2
    low = np.clip((centre - half).astype(np.int64), 0, (width - 1, height - 1))
    high = np.clip((centre + half).astype(np.int64), low + 1, (width, height))
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _folder_name(class_name: str) -> str:
    """Return a folder name for a class, without characters that are not allowed."""
    name = "".join("_" if character in "/\\\0" else character for character in class_name)
    return fitting_name(name) if name.strip(".") else "_"


def _utf8(path: str) -> str:
    """Return the path with undecodable bytes escaped, because CSV and JSON are UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")
