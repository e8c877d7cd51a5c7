"""What `graph-predict` does: weights, images and videos in; detections, pictures and files out."""

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
from graph_train.prediction.sources import SourceFile, Sources, find_sources
from graph_train.runs.run_folder import make_unused_folder
from graph_train.settings.predict_options import PredictOptions
from graph_train.validation.measuring import Speed
from kernels.host.paths import printable
from pipelines.batches import Batch
from pipelines.data.live import LiveVideo
from pipelines.data.problems import Problem
from pipelines.data.video import Video, VideoFile, require_opencv
from pipelines.predict import FrameBatches, ImageBatches, PredictSettings, inspect_images

Array = npt.NDArray[Any]
LOG = logging.getLogger("graph_train")

_FRAME = re.compile(r"(.+)_[1-9][0-9]*")
_NOTHING = np.zeros((0, 6), np.float32)
_LISTED_IMAGES = 20
"""Up to this many images have a line each on the terminal."""
EAGER_IMAGES = 16
"""Up to this many images are predicted op by op, sooner than a graph for them is compiled."""


@dataclass
class Tally:
    """What was found in how many images and video frames.

    Attributes:
        images, frames: how many were looked at.
        filled: how many of them have an object.
        objects: by class number.
    """

    images: int = 0
    frames: int = 0
    filled: int = 0
    objects: Counter[int] = field(default_factory=Counter)

    def add(self, found: Prediction) -> None:
        """Count an image or frame."""
        self.images += found.frame is None
        self.frames += found.frame is not None
        self.filled += bool(len(found.detections))
        self.objects.update(found.detections[:, 5].astype(np.int64).tolist())


@dataclass(frozen=True)
class PredictionResult:
    """The results of `graph-predict`.

    Attributes:
        folder: where everything was written, or None if nothing was asked for.
        class_names: by class number.
        predictions: one for each image, in the order of the sources, then one for each video frame looked at; the
            frames of a camera or stream, which has no end, are counted only.
        problems: files that were named and could not be used.
        speed: milliseconds per image or frame.
        tally: of all of them.
    """

    folder: Path | None
    class_names: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    problems: tuple[Problem, ...]
    speed: Speed
    tally: Tally

    @property
    def counts(self) -> dict[str, int]:
        """Objects of each class that was found, most frequent first."""
        frequent = sorted(self.tally.objects.items(), key=lambda item: (-item[1], item[0]))
        return {self.class_names[number]: count for number, count in frequent}


def predict_sources(options: PredictOptions) -> PredictionResult:
    """Run a whole `graph-predict`.

    Raises:
        ValueError, OSError: a setting or a file that cannot be used. A broken image among others is no error: it is
            left out and listed in the result.
    """
    with contextlib.ExitStack() as stack:
        downloads = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graph-predict-")))
        sources = find_sources(options.source, downloads=downloads, allow_download=options.allow_download)
        sources = _with_frame_folders(sources)
        _check_sources(options, sources)
        options = _with_execution(options, sources)
        live = None
        if sources.live is not None:
            live = stack.enter_context(contextlib.closing(LiveVideo(sources.live.address)))
        run = stack.enter_context(_PredictionRun(options, sources, ImageDetector(options)))
        run.predict_images()
        run.predict_videos()
        if live is not None:
            run.predict_live(live)
        run.finish()
    return run.result()


def _with_execution(options: PredictOptions, sources: Sources) -> PredictOptions:
    """Return the options with `--graph` or `--eager`, where neither was given."""
    if options.graph is not None:
        return options
    moving = bool(sources.videos) or sources.live is not None
    return replace(options, graph=moving or len(sources.images) > EAGER_IMAGES)


def _check_sources(options: PredictOptions, sources: Sources) -> None:
    """Refuses what needs OpenCV where it is not installed, and flags that no source has a use for."""
    for video in sources.videos:
        require_opencv(video.shown)
    if options.vid_stride != 1 and not sources.videos and sources.live is None:
        raise ValueError(f"--vid-stride {options.vid_stride}: there is no video among the sources; leave it out")
    if options.view_img and not sources.images:
        raise ValueError("--view-img: shows images, and there is none among the sources; look at the videos written")
    if options.save_json and sources.live is not None:
        raise ValueError(f"--save-json: is written at the end, and {sources.live.shown} has none; give --save-csv")


def _with_frame_folders(sources: Sources) -> Sources:
    """Rename videos so that no frame is called like an image: `clip.mp4` beside `clip_1.jpg` is `clip_2.mp4`.

    What becomes of a frame is called after its video and its number, see `Prediction.stem`.
    """
    images = {file.name.with_suffix("") for file in sources.images}
    moving = (*sources.videos, *([] if sources.live is None else [sources.live]))
    videos = {file.name.with_suffix("") for file in moving}
    frames_of = {stem.with_name(match[1]) for stem in images if (match := _FRAME.fullmatch(stem.name))}
    apart = []
    for file in moving:
        name, number = file.name, 2
        while (stem := name.with_suffix("")) in frames_of or (name != file.name and stem in images | videos):
            name, number = file.name.with_stem(f"{file.name.stem}_{number}"), number + 1
        videos.add(stem)
        apart.append(replace(file, name=name))
    files = len(sources.videos)
    return replace(sources, videos=tuple(apart[:files]), live=apart[files] if apart[files:] else None)


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


@dataclass(frozen=True)
class _Frames:
    """One video that is looked at: its frames in batches, the annotated video, the progress bar, and the prediction of
    its first frame, with nothing found yet."""

    source: FrameBatches
    target: VideoFile | None
    bar: Any
    first: Prediction


class _PredictionRun:
    """One prediction over all sources."""

    def __init__(self, options: PredictOptions, sources: Sources, detector: ImageDetector) -> None:
        self._options, self._sources, self._detector = options, sources, detector
        self._names, self._batches = detector.class_names, detector.batches
        self._features = FeatureMaps(detector.network, graph=options.graph is not False) if options.visualize else None
        self._output = _output_settings(options)
        self._writes = self._output.anything or options.visualize
        self._problems, self._timer = list(sources.problems), _Timer()
        self._found: list[Prediction] = []
        self._tally = Tally()

    def __enter__(self) -> "_PredictionRun":
        sources = [file.path for file in (*self._sources.images, *self._sources.videos)]
        workers = min(self._batches.workers, 4)
        self._writer = PredictionWriter(self._output, self._names, workers=workers, sources=sources)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.abandon()

    def finish(self) -> None:
        """Write all that is not written yet."""
        self._writer.close()

    def predict_images(self) -> None:
        """Predict in all images, broken ones left out."""
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
                raise ValueError(f"no image can be used; the first problem: {problems[0]}")
            return
        source = ImageBatches(index, self._batches)
        found: dict[int, Prediction] = {}
        with contextlib.closing(source), _progress(len(usable), "predicting") as bar:
            self._detector.warm_up(source.shapes)
            for batch in self._timed(source):
                files_here = [usable[number] for number in batch.indices]
                made = [
                    Prediction(file.path, None, place.original_hw, _NOTHING, file.name, file.address and file.shown)
                    for file, place in zip(files_here, batch.geometry, strict=True)
                ]
                for number, prediction in zip(batch.indices, self._detected(batch, made), strict=True):
                    found[int(number)] = prediction
                    self._writer.add_image(prediction)
                bar.update(len(batch.indices))
        for number in sorted(found):
            self._found.append(found[number])
            self._tally.add(found[number])

    def predict_videos(self) -> None:
        """Predict in all videos, one after the other; broken ones are left out."""
        for file in self._sources.videos:
            try:
                video = Video(file.path)
            except OSError as error:
                text = str(error).removeprefix(f"{printable(file.path)}: ")
                address = file.address and file.shown
                self._problems.append(Problem(file.path, None, "error", text, "image-unusable", address))
                continue
            with contextlib.closing(video):
                self._predict_video(file, video)
        if not self._found and self._sources.live is None:
            raise ValueError(f"nothing can be used; the first problem: {self._problems[0]}")

    def _predict_video(self, file: SourceFile, video: Video) -> None:
        every = self._options.vid_stride
        with self._frames(file, video, self._batches, -(-video.frames // every) or None) as frames:
            number = 1
            for batch, pixels in self._timed(frames.source.batches(video.read(every))):
                numbers = [number + place * every for place in range(len(pixels))]
                self._found += self._predict_frames(frames, batch, pixels, numbers)
                number = numbers[-1] + every

    def predict_live(self, live: LiveVideo) -> None:
        """Yield the newest frame of a camera or stream again and again, until it ends or the user interrupts it."""
        file = self._sources.live
        assert file is not None
        self._writer.write_table()
        LOG.info("%s: %dx%d px; Ctrl-C ends it, and what was found is kept", file.shown, *live.size)
        with StopRequest() as stop, self._frames(file, live, replace(self._batches, batch_size=1), None) as frames:
            last = None
            for number, frame in live.frames(self._options.vid_stride, lambda: stop.asked):
                for batch, pixels in self._timed(frames.source.batches([frame])):
                    # As many frames in the result as went by since the last one: it plays as fast as it happened.
                    times = 1 if last is None else (number - last) // self._options.vid_stride
                    self._predict_frames(frames, batch, pixels, [number], times)
                last = number
        if live.stalled:
            self._problems.append(Problem(file.path, None, "error", live.ended, "image-unusable", file.shown))
        elif live.ended:
            LOG.info("%s: %s", file.shown, live.ended)

    @contextlib.contextmanager
    def _frames(
        self, file: SourceFile, video: Video | LiveVideo, settings: PredictSettings, count: int | None
    ) -> Iterator["_Frames"]:
        """Return a function that predicts the frames of a video and writes them; `count` of them are expected."""
        name = file.name.with_suffix(".mp4")
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(contextlib.closing(FrameBatches(file.path, video.size, settings)))
            target = None
            if self._output.drawing is not None and self._output.save_drawn:
                path = self._output.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                rate = video.rate / self._options.vid_stride
                target = VideoFile(self._writer.without_overwriting(path), video.size, rate)
                stack.enter_context(contextlib.closing(target))
            bar = stack.enter_context(_progress(count, printable(file.name.name if file.address else file.path.name)))
            self._detector.warm_up({source.shape_hw: settings.batch_size})
            hw = (video.size[1], video.size[0])
            first = Prediction(file.path, 1, hw, _NOTHING, name, file.address and file.shown)
            yield _Frames(source, target, bar, first)

    def _predict_frames(
        self, frames: "_Frames", batch: Batch, pixels: Sequence[Array], numbers: Iterable[int], times: int = 1
    ) -> list[Prediction]:
        made = [replace(frames.first, frame=number) for number in numbers]
        found = self._detected(batch, made)
        for prediction, frame in zip(found, pixels, strict=True):
            self._writer.add_frame(prediction, frame, frames.target, times)
            self._tally.add(prediction)
        frames.bar.update(len(found))
        return found

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
        found, problems = tuple(self._found), tuple(self._problems)
        result = PredictionResult(folder, self._names, found, problems, self._timer.speed(), self._tally)
        _report(result)
        return result


def _report(result: PredictionResult) -> None:
    images = [found for found in result.predictions if found.frame is None]
    for found in images if len(images) <= _LISTED_IMAGES else ():
        height, width = found.image_hw
        LOG.info(
            "%s: %dx%d px, %s", printable(found.source), width, height, counted(found.detections, result.class_names)
        )
    tally = result.tally
    kinds = [
        f"{number} {kind}{'s' * (number > 1)}"
        for number, kind in ((tally.images, "image"), (tally.frames, "video frame"))
        if number
    ]
    seen = " and ".join(kinds) or "0 video frames"
    counts = ", ".join(f"{number} {name}" for name, number in result.counts.items())
    LOG.info("Found %s", f"{counts}; in {tally.filled} of {seen}" if counts else f"nothing in {seen}")
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
