"""The work of `graph-predict`: detect objects in images, videos and streams, and save the results."""

import contextlib
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from graph_train.host.interrupts import StopRequest
from graph_train.plots.images import BoxStyle
from graph_train.prediction.feature_maps import FeatureMaps
from graph_train.prediction.image_detector import ImageDetector
from graph_train.prediction.image_result import counted
from graph_train.prediction.prediction_files import OutputSettings, Prediction, PredictionWriter
from graph_train.prediction.sources import SourceFile, Sources, find_sources, numbered
from graph_train.runs.run_folder import make_unused_folder, require_possible_folder
from graph_train.settings.predict_options import PredictOptions
from graph_train.validation.result import Speed
from kernels.host.paths import printable
from pipelines.batches import Batch
from pipelines.data.live import LiveVideo
from pipelines.data.problems import Problem
from pipelines.data.video import Video, VideoFile, require_opencv
from pipelines.predict import FrameBatches, ImageBatches, PredictSettings, inspect_images

Array = npt.NDArray[Any]
LOG = logging.getLogger("graph_train")

_FRAME = re.compile(r"(.+)_[1-9][0-9]*")
_NO_DETECTIONS = np.zeros((0, 6), np.float32)
_LISTED_IMAGES = 20
"""Up to this number of images, each is listed in the terminal."""


@dataclass
class Tally:
    """Counts of images, video frames and detections.

    Attributes:
        images, frames: number of processed images and frames.
        with_objects: number of these with at least one detection.
        objects: number of detections by class number.
    """

    images: int = 0
    frames: int = 0
    with_objects: int = 0
    objects: Counter[int] = field(default_factory=Counter)

    def add(self, prediction: Prediction) -> None:
        """Count an image or frame."""
        self.images += prediction.frame is None
        self.frames += prediction.frame is not None
        self.with_objects += bool(len(prediction.detections))
        self.objects.update(prediction.detections[:, 5].astype(np.int64).tolist())


@dataclass(frozen=True)
class PredictionResult:
    """The results of `graph-predict`.

    Attributes:
        folder: the results folder, or None if nothing was saved.
        class_names: class names by class number.
        predictions: one per image, in the order of the sources, then one per processed video frame. The frames of a
            camera or stream are only counted, because their number is unlimited.
        problems: source files that could not be used.
        speed: milliseconds per image or frame.
        tally: counts over all images and frames.
    """

    folder: Path | None
    class_names: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    problems: tuple[Problem, ...]
    speed: Speed
    tally: Tally

    @property
    def counts(self) -> dict[str, int]:
        """Number of detections by class name, most frequent first."""
        frequent = sorted(self.tally.objects.items(), key=lambda item: (-item[1], item[0]))
        return {self.class_names[number]: count for number, count in frequent}


def predict_sources(options: PredictOptions) -> PredictionResult:
    """Run `graph-predict`.

    Raises:
        ValueError, OSError: a setting or a file is invalid. A broken image among others is not an error; it is skipped
            and listed in the result.
    """
    output = _output_settings(options)
    if _saves(output, options):
        require_possible_folder(options.project, options.name, exist_ok=options.exist_ok)
    with contextlib.ExitStack() as stack:
        downloads = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graph-predict-")))
        sources = find_sources(
            options.source,
            downloads=downloads,
            allow_download=options.allow_download,
            results=Path(options.project) / options.name,
        )
        sources = _with_frame_folders(sources)
        _check_sources(options, sources)
        live = None
        if sources.live is not None:
            live = stack.enter_context(contextlib.closing(LiveVideo(sources.live.address)))
        run = stack.enter_context(_PredictionRun(options, output, sources, ImageDetector(options)))
        run.predict_images()
        run.predict_videos()
        if live is not None:
            run.predict_live(live)
        run.finish()
    return run.result()


def _check_sources(options: PredictOptions, sources: Sources) -> None:
    """Require OpenCV for videos, and reject flags that do not apply to the sources."""
    for video in sources.videos:
        require_opencv(video.shown)
    if options.vid_stride != 1 and not sources.videos and sources.live is None:
        raise ValueError(f"--vid-stride {options.vid_stride}: the sources contain no video; remove it")
    if options.view_img and not sources.images:
        raise ValueError("--view-img: the sources contain no images; open the saved videos instead")
    if options.save_json and sources.live is not None:
        raise ValueError(f"--save-json: not supported for {sources.live.shown}, which has no end; use --save-csv")


def _with_frame_folders(sources: Sources) -> Sources:
    """Rename the results of videos whose frames would have the name of an image.

    Results of a frame are named after the video and the frame number, see `Prediction.stem`. So the results of
    `clip.mp4`, if there is an image `clip_1.jpg`, are named as those of `clip_2.mp4`.
    """
    images = {file.name.with_suffix("") for file in sources.images}
    moving = (*sources.videos, *([] if sources.live is None else [sources.live]))
    videos = {file.name.with_suffix("") for file in moving}
    frames_of = {stem.with_name(match[1]) for stem in images if (match := _FRAME.fullmatch(stem.name))}
    renamed = []
    for file in moving:
        name, number = file.name, 2
        while (stem := name.with_suffix("")) in frames_of or (name != file.name and stem in images | videos):
            name, number = numbered(file.name, number), number + 1
        videos.add(stem)
        renamed.append(replace(file, name=name))
    files = len(sources.videos)
    return replace(sources, videos=tuple(renamed[:files]), live=renamed[files] if renamed[files:] else None)


@dataclass
class _Timer:
    """Seconds spent in each phase, and the number of images."""

    load: float = 0.0
    inference: float = 0.0
    suppression: float = 0.0
    images: int = 0

    def speed(self) -> Speed:
        per_image = 1000 / max(self.images, 1)
        return Speed(self.load * per_image, self.inference * per_image, self.suppression * per_image)


@dataclass(frozen=True)
class _Frames:
    """A video in progress: its batches, the annotated video, the progress bar, and an empty prediction as template."""

    source: FrameBatches
    target: VideoFile | None
    bar: Any
    template: Prediction


class _PredictionRun:
    """A run of `graph-predict` over all sources."""

    def __init__(
        self, options: PredictOptions, output: OutputSettings, sources: Sources, detector: ImageDetector
    ) -> None:
        self._options, self._sources, self._detector = options, sources, detector
        self._names, self._batches = detector.class_names, detector.batches
        self._features = FeatureMaps(detector.network, graph=options.graph is not False) if options.visualize else None
        self._saves_files = _saves(output, options)
        if self._saves_files:
            folder = make_unused_folder(options.project, options.name, exist_ok=options.exist_ok)
            output = replace(output, folder=folder)
        self._output = output
        self._problems, self._timer = list(sources.problems), _Timer()
        self._predictions: list[Prediction] = []
        self._tally = Tally()

    def __enter__(self) -> "_PredictionRun":
        sources = [file.path for file in (*self._sources.images, *self._sources.videos)]
        workers = min(self._batches.workers, 4)
        self._writer = PredictionWriter(self._output, self._names, workers=workers, sources=sources)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.abandon()

    def finish(self) -> None:
        """Wait until everything is written."""
        self._writer.close()

    def predict_images(self) -> None:
        """Predict all images; broken ones are skipped."""
        files = self._sources.images
        if not files:
            return
        index, problems = inspect_images(
            [file.path for file in files], workers=self._batches.workers, progress="images"
        )
        addresses = {file.path: file.shown for file in files if file.address}
        problems = tuple(replace(problem, address=addresses.get(problem.file, "")) for problem in problems)
        self._problems += problems
        broken = {problem.file for problem in problems}
        usable = [file for file in files if file.path not in broken]
        if not usable:
            if not self._sources.videos and self._sources.live is None:
                raise ValueError(f"no usable image; first problem: {problems[0]}")
            return
        source = ImageBatches(index, self._batches)
        predictions: dict[int, Prediction] = {}
        with contextlib.closing(source), _progress(len(usable), "predicting") as bar:
            self._detector.warm_up(source.shapes)
            for batch in self._timed(source):
                batch_files = [usable[number] for number in batch.indices]
                empty = [
                    Prediction(
                        file.path, None, place.original_hw, _NO_DETECTIONS, file.name, file.address and file.shown
                    )
                    for file, place in zip(batch_files, batch.geometry, strict=True)
                ]
                for number, prediction in zip(batch.indices, self._detect(batch, empty), strict=True):
                    predictions[int(number)] = prediction
                    self._writer.add_image(prediction)
                bar.update(len(batch.indices))
        for number in sorted(predictions):
            self._predictions.append(predictions[number])
            self._tally.add(predictions[number])

    def predict_videos(self) -> None:
        """Predict all videos sequentially; broken ones are skipped."""
        for file in self._sources.videos:
            try:
                video = Video(file.path)
            except OSError as error:
                self._problems.append(self._unusable(file, str(error).removeprefix(f"{printable(file.path)}: ")))
                continue
            with contextlib.closing(video):
                self._predict_video(file, video)
            if video.incomplete_reason:
                self._problems.append(self._unusable(file, video.incomplete_reason))
        if not self._predictions and self._sources.live is None:
            raise ValueError(f"no usable image or video; first problem: {self._problems[0]}")

    @staticmethod
    def _unusable(file: SourceFile, text: str) -> Problem:
        """Return the problem of a video or stream that cannot be read, or not to its end."""
        return Problem(file.path, None, "error", text, "image-unusable", file.address and file.shown)

    def _predict_video(self, file: SourceFile, video: Video) -> None:
        every = self._options.vid_stride
        with self._frames(file, video, self._batches, -(-video.frames // every) or None) as frames:
            number = 1
            for batch, pixels in self._timed(frames.source.batches(video.read(every))):
                numbers = [number + place * every for place in range(len(pixels))]
                self._predictions += self._predict_frames(frames, batch, pixels, numbers)
                number = numbers[-1] + every

    def predict_live(self, live: LiveVideo) -> None:
        """Predict the newest frame of a camera or stream repeatedly, until it ends or the user interrupts."""
        file = self._sources.live
        assert file is not None
        self._writer.write_table()
        LOG.info("%s: %dx%d px; press Ctrl-C to stop and keep the results", printable(file.shown), *live.size)
        with StopRequest() as stop, self._frames(file, live, replace(self._batches, batch_size=1), None) as frames:
            last = None
            for number, frame in live.frames(self._options.vid_stride, lambda: stop.signal_name):
                for batch, pixels in self._timed(frames.source.batches([frame])):
                    # Repeat the frame for those dropped since the last one, so that the saved video plays in real time.
                    times = 1 if last is None else (number - last) // self._options.vid_stride
                    self._predict_frames(frames, batch, pixels, [number], times)
                last = number
        if live.failed:
            self._problems.append(self._unusable(file, live.ended))
        elif live.ended:
            LOG.info("%s: %s", printable(file.shown), live.ended)

    @contextlib.contextmanager
    def _frames(
        self, file: SourceFile, video: Video | LiveVideo, settings: PredictSettings, count: int | None
    ) -> Iterator["_Frames"]:
        """Open a video for prediction; `count` is the expected number of frames, or None."""
        name = file.name.with_suffix(".mp4")
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(contextlib.closing(FrameBatches(file.path, video.size, settings)))
            target = None
            if self._output.drawing is not None and self._output.save_annotated:
                path = self._output.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                rate = video.rate / self._options.vid_stride
                target = VideoFile(self._writer.without_overwriting(path), video.size, rate)
                stack.enter_context(contextlib.closing(target))
            bar = stack.enter_context(_progress(count, printable(file.name.name if file.address else file.path.name)))
            self._detector.warm_up({source.shape_hw: settings.batch_size})
            hw = (video.size[1], video.size[0])
            template = Prediction(file.path, 1, hw, _NO_DETECTIONS, name, file.address and file.shown)
            yield _Frames(source, target, bar, template)

    def _predict_frames(
        self, frames: "_Frames", batch: Batch, pixels: Sequence[Array], numbers: Iterable[int], times: int = 1
    ) -> list[Prediction]:
        empty = [replace(frames.template, frame=number) for number in numbers]
        predictions = self._detect(batch, empty)
        for prediction, frame in zip(predictions, pixels, strict=True):
            self._writer.add_frame(prediction, frame, frames.target, times)
            self._tally.add(prediction)
        frames.bar.update(len(predictions))
        return predictions

    def _timed(self, batches: Any) -> Iterator[Any]:
        """Yield the batches, counting the time spent waiting for them."""
        started = time.perf_counter()
        for batch in batches:
            self._timer.load += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def _detect(self, batch: Batch, empty: Sequence[Prediction]) -> list[Prediction]:
        """Fill the empty predictions of a batch with detections, in px of the files."""
        detections = self._detector.detect(batch)
        self._timer.inference += detections.inference_seconds
        self._timer.suppression += detections.suppression_seconds
        self._timer.images += len(empty)
        if self._features is not None:
            self._features.write(batch.images, [self._output.folder / prediction.stem for prediction in empty])
        return [replace(prediction, detections=rows) for prediction, rows in zip(empty, detections.rows, strict=True)]

    def result(self) -> PredictionResult:
        """Return the result and log a summary; call `finish` first."""
        folder = self._output.folder if self._saves_files else None
        predictions, problems = tuple(self._predictions), tuple(self._problems)
        result = PredictionResult(folder, self._names, predictions, problems, self._timer.speed(), self._tally)
        _report(result)
        return result


def _report(result: PredictionResult) -> None:
    images = [prediction for prediction in result.predictions if prediction.frame is None]
    for image in images if len(images) <= _LISTED_IMAGES else ():
        height, width = image.image_hw
        LOG.info(
            "%s: %dx%d px, %s", printable(image.source), width, height, counted(image.detections, result.class_names)
        )
    tally = result.tally
    kinds = [
        f"{number} {kind}{'s' * (number > 1)}"
        for number, kind in ((tally.images, "image"), (tally.frames, "video frame"))
        if number
    ]
    seen = " and ".join(kinds) or "0 video frames"
    counts = ", ".join(f"{number} {name}" for name, number in result.counts.items())
    LOG.info("Found %s", f"{counts}; in {tally.with_objects} of {seen}" if counts else f"nothing in {seen}")
    speed = result.speed
    LOG.info(
        "Speed: %.1fms loading, %.1fms inference, %.1fms NMS per image", speed.load, speed.inference, speed.suppression
    )
    if result.folder is not None:
        LOG.info("Results saved to %s", printable(result.folder))
    for problem in result.problems:
        LOG.warning("skipped: %s", problem)


def _progress(total: int | None, name: str) -> Any:
    # disable=None: no bar if stderr is a file or a pipe.
    return tqdm(total=total, desc=name, unit="img", disable=None)


def _output_settings(options: PredictOptions) -> OutputSettings:
    """Return the output settings, with the results folder of a first run."""
    style = BoxStyle(options.line_thickness, names=not options.hide_labels, confidences=not options.hide_conf)
    return OutputSettings(
        folder=Path(options.project) / options.name,
        drawing=None if options.nosave and not options.view_img else style,
        labels=options.save_txt,
        confidences=options.save_conf,
        crops=options.save_crop,
        entries=options.save_json,
        table=options.save_csv,
        save_annotated=not options.nosave,
        show=options.view_img,
    )


def _saves(output: OutputSettings, options: PredictOptions) -> bool:
    """Return whether anything will be saved."""
    return output.writes_files or options.visualize
