"""`graph-check` of a data set: index all splits, print the report, and write the requested files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graph_train.checks import data_report
from graph_train.checks.data_report import SplitReport
from graph_train.plots.labels import plot_labels
from graph_train.settings.check_options import CheckOptions
from kernels.host.files import is_stream, write_atomically
from kernels.host.paths import output_file, printable, reject_overwriting
from kernels.host.quantity import quantity
from models.spec import load_model_spec
from pipelines.data.dataset import SPLITS, Dataset, Split, load_dataset
from pipelines.data.index import ImageIndex, scan_images
from pipelines.data.listing import label_path
from pipelines.data.problems import Problem, count, write_problems


def check_data(options: CheckOptions) -> int:
    """Check a data set and print the report; return the number of errors.

    Raises:
        ValueError: the dataset yaml or the model yaml is invalid, or an output is inside the data set.
        OSError: a file cannot be read or written.
    """
    dataset = load_dataset(options.data, allow_download=options.allow_download)
    for target in (options.json, options.plots, options.problems):
        _reject_inside(dataset, target)
    json_file, problems_file = _output_files(options)
    anchors_px = np.asarray(load_model_spec(options.cfg).anchors_px)
    indices: dict[Split, ImageIndex] = {
        split: _scan(dataset, split, options) for split in SPLITS if _has(dataset, split)
    }
    for output in (json_file, problems_file):
        for index in indices.values():
            reject_overwriting(output, (file for image in index.paths for file in (image, label_path(image))))
    reports = {
        split: data_report.describe_split(
            index, imgsz=options.imgsz, anchors_px=anchors_px, anchor_threshold=options.anchor_t
        )
        for split, index in indices.items()
    }
    problems = _problems(dataset, indices, reports)
    for split, report in reports.items():
        print("\n".join(data_report.as_text(split, report)))
    for problem in problems:
        print(problem)
    errors = count(problems, "error")
    print(f"{quantity(errors, 'error')}, {quantity(len(problems) - errors, 'warning')}")
    if json_file:
        write_atomically(json_file, json.dumps(data_report.as_json(dataset, reports, problems), indent=2))
    if problems_file:
        write_problems(problems_file, problems)
    if options.plots:
        _plot(indices, Path(options.plots))
    return errors


def _output_files(options: CheckOptions) -> tuple[Path | None, Path | None]:
    """Return the files of `--json` and `--problems`."""
    json_file = output_file("--json", options.json) if options.json else None
    problems_file = output_file("--problems", options.problems, makes_folder=True) if options.problems else None
    if json_file and problems_file and json_file == problems_file and not is_stream(json_file):
        raise ValueError(f"--json and --problems: both are {options.json}; give two different files")
    return json_file, problems_file


def _has(dataset: Dataset, split: Split) -> bool:
    return split not in dataset.absent


def _scan(dataset: Dataset, split: Split, options: CheckOptions) -> ImageIndex:
    return scan_images(
        dataset.split(split),
        dataset.class_names,
        single_class=options.single_cls,
        workers=options.workers or None,
        progress=split,
    )


def _problems(
    dataset: Dataset, indices: Mapping[Split, ImageIndex], reports: Mapping[Split, SplitReport]
) -> list[Problem]:
    found = [problem for index in indices.values() for problem in index.problems]
    for split, index in indices.items():
        if not len(index):
            found.append(Problem(dataset.file, None, "error", f"{split} has no usable image", "source"))
        # For other splits, there are warnings about classes without boxes.
        if split == "train" and (unlabelled := index.missing_labels(dataset.split(split))):
            found.append(Problem(dataset.file, None, "error", f"{split}: {unlabelled}", "source"))
    if repeated := dataset.duplicate_name():
        found.append(Problem(dataset.file, None, "warning", repeated, "class-repeated"))
    return found + data_report.shared_images(indices) + data_report.class_warnings(dataset, reports)


def _reject_inside(dataset: Dataset, target: str) -> None:
    """Reject an output inside the data set."""
    if not target:
        return
    place, cwd = Path(os.path.realpath(target)), Path.cwd()
    sources = [source for split in SPLITS for source in getattr(dataset, split)]
    for file in (dataset.file, *sources):
        if Path(os.path.realpath(file)) == place:
            raise ValueError(f"{target}: is a file of the data set and would be overwritten; choose another file")
    folders = [folder for source in sources if source.is_dir() for folder in _image_and_label_folders(source / "x")]
    # A root that contains the working folder is that of the whole project.
    if Path(os.path.realpath(dataset.root)) not in (cwd, *cwd.parents):
        folders.append(dataset.root)
    for folder in folders:
        if Path(os.path.realpath(folder)) in (place, *place.parents):
            raise ValueError(f"{target}: is inside the data set ({printable(folder)}); choose another folder")


def _image_and_label_folders(image: Path) -> list[Path]:
    """Return the image and label folders of an image; for `images/…`, the top-level `images` and `labels` folders."""
    before, found, _ = str(image).rpartition("/images/")
    return [Path(before, name) for name in ("images", "labels")] if found else [image.parent, label_path(image).parent]


def _plot(indices: Mapping[Split, ImageIndex], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, index in indices.items():
        labels = index.labels.rows
        plot_labels(labels, index.class_names, folder / f"labels_{split}.png")
