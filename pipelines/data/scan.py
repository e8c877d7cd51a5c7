"""Scan of all image and label files of a split with several threads (Pillow releases the GIL while decoding)."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from kernels.host.files import NotReadableError, broken_link, read_regular
from kernels.host.paths import printable
from pipelines.data.coco_json import CocoImage
from pipelines.data.images import ImageFacts, UnusableImageError, ignore_metadata_warnings, inspect_image, size_mismatch
from pipelines.data.labels import MAX_FILE_BYTES, LabelRows, no_labels, parse_label_files
from pipelines.data.listing import Listing
from pipelines.data.problems import Problem
from pipelines.data.scanned import ScannedImage, ScanTable

_CHUNK = 64


def scan(
    listing: Listing, *, num_classes: int | None, workers: int | None = None, progress: str | None = None
) -> ScanTable:
    """Scan the images of a listing; the results are in its order.

    Args:
        listing: images and their labels.
        num_classes: labels with this or a higher class number are reported; None accepts all.
        workers: number of threads, by default one per core, at most 8.
        progress: name of the progress bar; None shows none.
    """
    threads = workers or min(8, os.cpu_count() or 1)
    parts = [range(len(listing))[start : start + _CHUNK] for start in range(0, len(listing), _CHUNK)]
    results = [ScanTable.of([])] * len(parts)
    with (
        ignore_metadata_warnings(),
        tqdm(total=len(listing), desc=progress, unit="img", disable=progress is None or None) as bar,
    ):
        executor = ThreadPoolExecutor(threads, thread_name_prefix="scan")
        try:
            chunks = {executor.submit(_scan_part, listing, part, num_classes): n for n, part in enumerate(parts)}
            problems = 0
            for done in as_completed(chunks):
                found = results[chunks[done]] = done.result()
                problems += sum(map(len, found.problems.values()))
                bar.set_postfix(problems=problems, refresh=False)
                bar.update(len(found))
        finally:
            executor.shutdown(cancel_futures=True)
    return ScanTable.joined([ScanTable.of([]), *results])


def _scan_part(listing: Listing, part: range, num_classes: int | None) -> ScanTable:
    images, files = listing.images[part.start : part.stop], listing.labels[part.start : part.stop]
    coco = listing.coco[part.start : part.stop] or (None,) * len(images)
    from_files = [file for file, entry in zip(files, coco, strict=True) if entry is None]
    read = iter(_read_labels(from_files, num_classes))
    return ScanTable.of(
        [
            _scan_one(image, next(read)) if entry is None else _scan_annotated(image, entry)
            for image, entry in zip(images, coco, strict=True)
        ]
    )


def _scan_one(image: str, labels: LabelRows) -> ScannedImage:
    try:
        return ScannedImage(inspect_image(image), labels, labels.problems)
    except UnusableImageError as error:
        problem = Problem(Path(image), None, "error", f"{error}; image skipped", "image-unusable")
        return ScannedImage(None, labels, (problem, *labels.problems))


def _scan_annotated(image: str, coco: CocoImage) -> ScannedImage:
    scanned = _scan_one(image, coco.labels)
    if scanned.facts is None:
        return scanned
    labels = _checked_labels(coco, scanned.facts, Path(image))
    return ScannedImage(scanned.facts, labels, labels.problems)


def _read_labels(files: Sequence[str], num_classes: int | None) -> list[LabelRows]:
    """Read and parse label files."""
    contents: list[bytes] = []
    unreadable: dict[int, LabelRows] = {}
    for number, file in enumerate(files):
        try:
            contents.append(read_regular(file, max_bytes=MAX_FILE_BYTES))
        except FileNotFoundError:
            broken = broken_link(Path(file))
            text = f"{printable(broken or file)} is a broken link"
            unreadable[number] = _unreadable(Path(file), text) if broken else no_labels()
        except OSError as error:
            unreadable[number] = _unreadable(Path(file), error.strerror or str(error))
        except NotReadableError as error:
            unreadable[number] = _unreadable(Path(file), str(error))
    read = [file for number, file in enumerate(files) if number not in unreadable] if unreadable else files
    parsed = iter(parse_label_files(contents, read, num_classes=num_classes))
    return [unreadable[number] if number in unreadable else next(parsed) for number in range(len(files))]


def _unreadable(file: Path, reason: str) -> LabelRows:
    problem = Problem(file, None, "error", f"labels cannot be read: {reason}; image skipped", "label-unusable")
    return LabelRows(no_labels().boxes, problems=(problem,), usable=False)


def _checked_labels(coco: CocoImage, facts: ImageFacts, image: Path) -> LabelRows:
    """Check that an image has the aspect ratio given in the json, whose annotations are in px."""
    severity, text = size_mismatch((coco.width, coco.height), (facts.width, facts.height))
    if not coco.labels.usable or not text:
        return coco.labels
    problem = Problem(image, None, severity, text, "coco")
    if severity == "warning":
        return LabelRows(coco.labels.boxes, coco.labels.segments, (problem,))
    return LabelRows(no_labels().boxes, problems=(problem,), usable=False)
