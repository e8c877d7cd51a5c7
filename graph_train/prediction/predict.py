"""What `graph-predict` does: weights, images and videos in; detections, pictures and files out."""

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from graph_train.plots.images import BoxStyle
from graph_train.prediction.feature_maps import FeatureMaps
from graph_train.prediction.image_detector import ImageDetector
from graph_train.prediction.image_result import counted
from graph_train.prediction.prediction_files import OutputSettings, Prediction, PredictionWriter
from graph_train.prediction.sources import SourceFile, Sources, find_sources
from graph_train.runs.run_folder import make_unused_folder
from graph_train.settings.predict_options import PredictOptions
from graph_train.validation.measuring import Speed
from kernels.host.paths import printable
from pipelines.batches import Batch
from pipelines.data.problems import Problem
from pipelines.data.video import Video, VideoFile, require_opencv
from pipelines.predict import FrameBatches, ImageBatches, inspect_images

Array = npt.NDArray[Any]
LOG = logging.getLogger("graph_train")

_FRAME = re.compile(r"(.+)_[1-9][0-9]*")
_NOTHING = np.zeros((0, 6), np.float32)
_LISTED_IMAGES = 20
"""Up to this many images have a line each on the terminal."""


@dataclass(frozen=True)
class PredictionResult:
    """The results of `graph-predict`.

    Attributes:
        folder: where everything was written, or None if nothing was asked for.
        class_names: by class number.
        predictions: one for each image, in the order of the sources, then one for each video frame looked at.
        problems: files that were named and could not be used.
        speed: milliseconds per image or frame.
    """

    folder: Path | None
    class_names: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    problems: tuple[Problem, ...]
    speed: Speed

    @property
    def counts(self) -> dict[str, int]:
        """Objects of each class that was found, most frequent first."""
        categories = [int(row[5]) for found in self.predictions for row in found.detections]
        numbers = np.bincount(np.asarray(categories, np.int64), minlength=len(self.class_names))
        return {self.class_names[n]: int(numbers[n]) for n in np.argsort(-numbers, kind="stable") if numbers[n]}


def predict_sources(options: PredictOptions) -> PredictionResult:
    """Run a whole `graph-predict`.

    Raises:
        ValueError, OSError: a setting or a file that cannot be used. A broken image among others is no error: it is
            left out and listed in the result.
    """
    sources = _with_frame_folders(find_sources(options.source))
    for video in sources.videos:
        require_opencv(video.path)
    if options.vid_stride != 1 and not sources.videos:
        raise ValueError(f"--vid-stride {options.vid_stride}: there is no video among the sources; leave it out")
    detector = ImageDetector(options)
    with _PredictionRun(options, sources, detector) as run:
        run.predict_images()
        run.predict_videos()
    return run.result()


def _with_frame_folders(sources: Sources) -> Sources:
    """Rename videos so that no frame is called like an image: `clip.mp4` beside `clip_1.jpg` is `clip_2.mp4`.

    What becomes of a frame is called after its video and its number, see `Prediction.stem`.
    """
    images = {file.name.with_suffix("") for file in sources.images}
    videos = {file.name.with_suffix("") for file in sources.videos}
    frames_of = {stem.with_name(match[1]) for stem in images if (match := _FRAME.fullmatch(stem.name))}
    apart = []
    for file in sources.videos:
        name, number = file.name, 2
        while (stem := name.with_suffix("")) in frames_of or (name != file.name and stem in images | videos):
            name, number = file.name.with_stem(f"{file.name.stem}_{number}"), number + 1
        videos.add(stem)
        apart.append(replace(file, name=name))
    return replace(sources, videos=tuple(apart))


@dataclass
class _Timer:
    """Seconds spent in each part, and on how many images."""

    load: float = 0.0
    inference: float = 0.0
    suppression: float = 0.0
    images: int = 0

    def speed(self) -> Speed:
        per_image = 1000 / max(self.images, 1)
        return Speed(self.load * per_image, self.inference * per_image, self.suppression * per_image)


class _PredictionRun:
    """One prediction over all sources."""

    def __init__(self, options: PredictOptions, sources: Sources, detector: ImageDetector) -> None:
        self._options, self._sources, self._detector = options, sources, detector
        self._names, self._batches = detector.class_names, detector.batches
        self._features = FeatureMaps(detector.network, graph=options.graph) if options.visualize else None
        self._output = _output_settings(options)
        self._writes = self._output.anything or options.visualize
        self._problems, self._timer = list(sources.problems), _Timer()
        self._found: list[Prediction] = []

    def __enter__(self) -> "_PredictionRun":
        sources = [file.path for file in (*self._sources.images, *self._sources.videos)]
        workers = min(self._batches.workers, 4)
        self._writer = PredictionWriter(self._output, self._names, workers=workers, sources=sources)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._writer.close()
        else:
            self._writer.abandon()

    def predict_images(self) -> None:
        """Predict in all images, broken ones left out."""
        files = self._sources.images
        if not files:
            return
        index, problems = inspect_images(
            [file.path for file in files], workers=self._batches.workers, progress="images"
        )
        self._problems += problems
        broken = {problem.file for problem in problems}
        usable = [file for file in files if file.path not in broken]
        if not usable:
            if not self._sources.videos:
                raise ValueError(f"no image can be used; the first problem: {problems[0]}")
            return
        source = ImageBatches(index, self._batches)
        found: dict[int, Prediction] = {}
        with contextlib.closing(source), _progress(len(usable), "predicting") as bar:
            self._detector.warm_up(source.shapes)
            for batch in self._timed(source):
                files_here = [usable[number] for number in batch.indices]
                made = [
                    Prediction(file.path, None, place.original_hw, _NOTHING, file.name)
                    for file, place in zip(files_here, batch.geometry, strict=True)
                ]
                for number, prediction in zip(batch.indices, self._detected(batch, made), strict=True):
                    found[int(number)] = prediction
                    self._writer.add_image(prediction)
                bar.update(len(batch.indices))
        self._found += [found[number] for number in sorted(found)]

    def predict_videos(self) -> None:
        """Predict in all videos, one after the other; broken ones are left out."""
        for file in self._sources.videos:
            try:
                video = Video(file.path)
            except OSError as error:
                text = str(error).removeprefix(f"{printable(file.path)}: ")
                self._problems.append(Problem(file.path, None, "error", text, "image-unusable"))
                continue
            with contextlib.closing(video):
                self._predict_video(file, video)
        if not self._found:
            raise ValueError(f"nothing can be used; the first problem: {self._problems[0]}")

    def _predict_video(self, file: SourceFile, video: Video) -> None:
        every = self._options.vid_stride
        source = FrameBatches(file.path, video.size, self._batches)
        name = file.name.with_suffix(".mp4")
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(source))
            target = None
            if self._output.drawing is not None and self._output.save_drawn:
                (self._output.folder / name).parent.mkdir(parents=True, exist_ok=True)
                target = VideoFile(
                    self._writer.without_overwriting(self._output.folder / name), video.size, video.rate / every
                )
                stack.enter_context(contextlib.closing(target))
            bar = stack.enter_context(_progress(-(-video.frames // every) or None, printable(file.path.name)))
            self._detector.warm_up({source.shape_hw: self._batches.batch_size})
            number = 1
            for batch, frames in self._timed(source.batches(video.read(every))):
                hw = (video.size[1], video.size[0])
                numbers = [number + place * every for place in range(len(frames))]
                made = [Prediction(file.path, frame, hw, _NOTHING, name) for frame in numbers]
                for prediction, frame in zip(self._detected(batch, made), frames, strict=True):
                    self._writer.add_frame(prediction, frame, target)
                    self._found.append(prediction)
                number = numbers[-1] + every
                bar.update(len(frames))

    def _timed(self, batches: Any) -> Iterator[Any]:
        """Yield the batches, with the time spent waiting for them taken."""
        started = time.perf_counter()
        for batch in batches:
            self._timer.load += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def _detected(self, batch: Batch, made: Sequence[Prediction]) -> list[Prediction]:
        """Return the predictions, one for each image of a batch, with what was found in it, in px of its file."""
        found = self._detector.detect(batch)
        self._timer.inference += found.inference_seconds
        self._timer.suppression += found.suppression_seconds
        self._timer.images += len(made)
        if self._features is not None:
            self._features.write(batch.images, [self._output.folder / prediction.stem for prediction in made])
        return [replace(prediction, detections=rows) for prediction, rows in zip(made, found.rows, strict=True)]

    def result(self) -> PredictionResult:
        """Return everything that was found, after it was written, and print a summary."""
        folder = self._output.folder if self._writes else None
        result = PredictionResult(folder, self._names, tuple(self._found), tuple(self._problems), self._timer.speed())
        _report(result)
        return result


def _report(result: PredictionResult) -> None:
    images = [found for found in result.predictions if found.frame is None]
    for found in images if len(images) <= _LISTED_IMAGES else ():
        height, width = found.image_hw
        LOG.info(
            "%s: %dx%d px, %s", printable(found.path), width, height, counted(found.detections, result.class_names)
        )
    filled = sum(bool(len(found.detections)) for found in result.predictions)
    frames = len(result.predictions) - len(images)
    kinds = [
        f"{number} {kind}{'s' * (number > 1)}"
        for number, kind in ((len(images), "image"), (frames, "video frame"))
        if number
    ]
    seen = " and ".join(kinds)
    counts = ", ".join(f"{number} {name}" for name, number in result.counts.items())
    LOG.info("Found %s", f"{counts}; in {filled} of {seen}" if counts else f"nothing in {seen}")
    speed = result.speed
    LOG.info(
        "Speed: %.1fms loading, %.1fms inference, %.1fms NMS per image", speed.load, speed.inference, speed.suppression
    )
    if result.folder is not None:
        LOG.info("Results saved to %s", result.folder)
    for problem in result.problems:
        LOG.warning("left out: %s", problem)


def _progress(total: int | None, name: str) -> Any:
    # disable=None: no bar where stderr is a file or a pipe.
    return tqdm(total=total, desc=name, unit="img", disable=None)


def _output_settings(options: PredictOptions) -> OutputSettings:
    """Return the output settings; make the folder if anything will be written."""
    style = BoxStyle(options.line_thickness, names=not options.hide_labels, confidences=not options.hide_conf)
    output = OutputSettings(
        folder=Path(options.project) / options.name,
        drawing=None if options.nosave and not options.view_img else style,
        labels=options.save_txt,
        confidences=options.save_conf,
        crops=options.save_crop,
        entries=options.save_json,
        table=options.save_csv,
        save_drawn=not options.nosave,
        show=options.view_img,
    )
    if not output.anything and not options.visualize:
        return output
    return replace(output, folder=make_unused_folder(options.project, options.name, exist_ok=options.exist_ok))
