"""Looks at every image and label file of a split, on several threads (Pillow decodes outside Python's lock)."""

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from kernels.host.files import NotReadableError, broken_link, read_regular
from kernels.host.paths import printable
from pipelines.data.coco_json import CocoImage
from pipelines.data.images import ImageFacts, UnusableImageError, inspect_image, inspecting
from pipelines.data.labels import MAX_FILE_BYTES, LabelRows, no_labels, parse_labels
from pipelines.data.listing import Item, Listing
from pipelines.data.problems import Problem
from pipelines.data.scanned import ScannedImage, ScanTable

_CHUNK = 16


def scan(
    listing: Listing, *, num_classes: int | None, workers: int | None = None, progress: str | None = None
) -> ScanTable:
    """The results in the order of the listing, whatever the number of threads.

    Args:
        listing: images and their labels.
        num_classes: labels from this class on are reported; None takes every class.
        workers: threads, by default one for each core, at most 8.
        progress: name of the progress bar; None shows none.
    """
    threads = workers or min(8, os.cpu_count() or 1)
    parts = [range(len(listing))[start : start + _CHUNK] for start in range(0, len(listing), _CHUNK)]
    results = [ScanTable.of([])] * len(parts)
    with inspecting(), tqdm(total=len(listing), desc=progress, unit="img", disable=progress is None or None) as bar:
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
    return ScanTable.of([_scan_one(item, num_classes) for item in listing.items(part)])


def _scan_one(item: Item, num_classes: int | None) -> ScannedImage:
    labels = _read_labels(item.label, num_classes) if item.coco is None else item.coco.labels
    try:
        facts = inspect_image(item.image)
    except UnusableImageError as error:
        problem = Problem(item.image, None, "error", f"{error}; image left out", "image-unusable")
        return ScannedImage(None, labels, (problem, *labels.problems))
    if item.coco is not None:
        labels = _for_this_image(item.coco, facts, item.image)
    return ScannedImage(facts, labels, labels.problems)


def _read_labels(file: Path, num_classes: int | None) -> LabelRows:
    try:
        content = read_regular(file, max_bytes=MAX_FILE_BYTES)
    except FileNotFoundError:
        broken = broken_link(file)
        return _unreadable(file, f"{printable(broken)} is a link to nothing") if broken else no_labels()
    except OSError as error:
        return _unreadable(file, error.strerror or str(error))
    except NotReadableError as error:
        return _unreadable(file, str(error))
    return parse_labels(content, file, num_classes=num_classes)


def _unreadable(file: Path, reason: str) -> LabelRows:
    problem = Problem(file, None, "error", f"labels cannot be read: {reason}; image left out", "label-unusable")
    return LabelRows(no_labels().boxes, problems=(problem,), usable=False)


def _for_this_image(coco: CocoImage, facts: ImageFacts, image: Path) -> LabelRows:
    """Annotations are in px of the size that the json states; a picture of other proportions is not what it meant."""
    if not coco.labels.usable or (coco.width, coco.height) == (facts.width, facts.height):
        return coco.labels
    stated, found = f"{coco.width} x {coco.height}", f"{facts.width} x {facts.height}"
    if abs(coco.width / coco.height * facts.height / facts.width - 1) < 0.02:
        text = f"{found} px, the json says {stated}; boxes scaled"
        problem = Problem(image, None, "warning", text, "coco")
        return LabelRows(coco.labels.boxes, coco.labels.segments, (problem,))
    text = f"{found} px, the json says {stated}; image left out"
    return LabelRows(no_labels().boxes, problems=(Problem(image, None, "error", text, "coco"),), usable=False)
