"""Dataset yaml files in YOLOv5's format: image sources of each split, and class names."""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kernels.host.paths import printable, with_home
from kernels.host.quantity import quantity
from kernels.host.safe_yaml import YamlFile, load_yaml
from pipelines.data.coco_json import is_coco_file
from pipelines.data.completeness import missing_part
from pipelines.data.download import archives, download_hint, fetch_into
from pipelines.data.labels import MAX_CLASSES
from pipelines.data.shapes import SHAPES_NAME, render_shapes

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MAX_PATH_LENGTH = 4096

_log = logging.getLogger("graph_train")
_PARTS = ("images", "labels", "annotations")
_SHIPPED = Path(__file__).with_name("datasets")
_SHIPPED_PREFIXES = (Path(), Path("data"))
"""Folders that may precede a shipped name; in YOLOv5's checkout the yamls are in `data`."""


@dataclass(frozen=True)
class Dataset:
    """The content of a dataset yaml.

    Attributes:
        name: the yaml's name without its extension.
        file: the yaml.
        root: the folder in which relative sources were found.
        train, val, test: image sources: folders, txt lists of images, COCO json files; empty for a missing split.
        class_names: class names; empty if the yaml has none, which is only allowed with COCO json.
        absent: for each missing split, the reason.
    """

    name: str
    file: Path
    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    class_names: tuple[str, ...]
    absent: dict[Split, str] = field(default_factory=dict)

    def split(self, name: Split) -> tuple[Path, ...]:
        """Return the sources of a split.

        Raises:
            ValueError: the split or its images are missing.
        """
        if name in self.absent:
            raise ValueError(self.absent[name])
        sources: tuple[Path, ...] = getattr(self, name)
        return sources

    def duplicate_name(self) -> str:
        """Return a description of two classes with the same name; "" if there are none."""
        first: dict[str, int] = {}
        for number, name in enumerate(self.class_names):
            if first.setdefault(name, number) != number:
                return f"classes {first[name]} and {number} have the same name {name!r}; rename one"
        return ""


def is_coco_2017(sources: Sequence[Path]) -> bool:
    """Return whether the sources of a split are the lists of COCO 2017 in a folder `coco`."""
    return any(source.parent.name == "coco" and source.name.endswith("2017.txt") for source in sources)


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped and built-in data sets."""
    return (*sorted(file.name for file in _SHIPPED.glob("*.yaml")), SHAPES_NAME)


def load_dataset(
    path_or_name: str | Path, *, require: Sequence[Split] = ("train", "val"), allow_download: bool = False
) -> Dataset:
    """Load a dataset yaml by path or shipped name, or create the built-in data set `shapes`.

    A relative `path` is resolved from the yaml's folder, then from the current one (in YOLOv5 only from the current
    one); for a shipped yaml, from the current folder and its subfolder `datasets/`, which downloads go to. `download`
    is used only if it is allowed and a required split is missing, see `pipelines.data.download`.

    Args:
        path_or_name: a yaml file, or one of `shipped_names()` if there is no such file, also as `data/NAME`.
        require: splits that must exist.
        allow_download: whether to download missing data from the yaml's URLs, which must have checksums.
    Raises:
        ValueError: the yaml is invalid or inconsistent, or a required split is missing or incomplete; names file, line
            and column.
        OSError: there is no such file.
    """
    file = _find_file(path_or_name)
    shipped = file.parent == _SHIPPED
    yaml = load_yaml(file)
    roots = _roots(yaml, shipped)
    found = {split: _sources(yaml, split, roots) for split in SPLITS}
    if shipped:
        _require_complete(yaml, {split: found[split] for split in require}, roots[-1:] if allow_download else roots)
    if allow_download and any(isinstance(found[split], str) for split in require):
        _download(yaml, roots, require, shipped=shipped)
        found = {split: _sources(yaml, split, roots) for split in SPLITS}
    absent = {split: sources for split, sources in found.items() if isinstance(sources, str)}
    for split in require:
        if split in absent:
            raise ValueError(absent[split])
    present: dict[Split, tuple[Path, ...]] = {s: f for s, f in found.items() if not isinstance(f, str)}
    is_coco = [is_coco_file(source) for sources in present.values() for source in sources]
    names = _class_names(yaml, optional=bool(is_coco) and all(is_coco))
    return Dataset(
        name=SHAPES_NAME if str(path_or_name) == SHAPES_NAME else file.stem,
        file=file,
        root=next((root for root in roots if root.is_dir()), roots[0]),
        train=present.get("train", ()),
        val=present.get("val", ()),
        test=present.get("test", ()),
        class_names=names,
        absent=absent,
    )


def _find_file(path_or_name: str | Path) -> Path:
    path = with_home(path_or_name)
    if os.path.isdir(path):
        raise ValueError(f"{printable(path)}: is a folder; give a dataset yaml (path, train, val, names)")
    if os.path.exists(path):
        return Path(os.path.abspath(path))
    if str(path_or_name) == SHAPES_NAME:
        return render_shapes()
    for name in (path.name, f"{path.name}.yaml"):
        if path.parent in _SHIPPED_PREFIXES and os.path.isfile(_SHIPPED / name):
            return _SHIPPED / name
    raise FileNotFoundError(
        f"{printable(path)}: no such dataset yaml; give a path, or one of {', '.join(shipped_names())}"
    )


def _path(yaml: YamlFile, *key: Any) -> Path:
    value = yaml.data
    for part in key:
        value = value[part]
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{yaml.where(*key)}: {key[0]} must be a path, found {value!r:.80}")
    if len(value) > MAX_PATH_LENGTH:
        raise ValueError(f"{yaml.where(*key)}: {key[0]} must be a path, found {len(value)} characters")
    try:
        return with_home(value)
    except ValueError as error:
        raise ValueError(f"{yaml.where(*key)}: {key[0]}: {error}") from None


def _roots(yaml: YamlFile, shipped: bool) -> list[Path]:
    """Return the folders to resolve relative sources from, in order of precedence."""
    stated = _path(yaml, "path") if yaml.data.get("path") is not None else Path()
    if stated.is_absolute():
        return [stated]
    here = Path.cwd()
    bases = [here, here / "datasets"] if shipped else [yaml.path.parent, here]
    candidates = [base / stated for base in bases]
    if shipped:
        candidates.append(here / "datasets" / stated.name)
    return list(dict.fromkeys(Path(os.path.abspath(candidate)) for candidate in candidates))


def _access_error(path: Path) -> str:
    """Return why a path cannot be looked at, such as a folder without permission; "" if it does not exist."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _sources(yaml: YamlFile, split: Split, roots: list[Path]) -> tuple[Path, ...] | str:
    """Return the sources of a split, or the reason why there are none."""
    value = yaml.data.get(split)
    if value is None or value in ("", []):
        keys = ", ".join(str(key) for key in yaml.data)
        return f"{printable(yaml.path)}: no `{split}`: add a folder, txt list or COCO json (keys found: {keys})"
    keys_of_entries = [(split, i) for i in range(len(value))] if isinstance(value, list) else [(split,)]
    sources = []
    for key in keys_of_entries:
        tried = _candidates(_path(yaml, *key), roots)
        source = next((path for path in tried if os.path.exists(path)), None)
        if source is None:
            for path in tried:
                if reason := _access_error(path):
                    return (
                        f"{yaml.where(*key)}: {split}: {printable(path)}: {reason}; check the path and its permissions"
                    )
            places = ", ".join(printable(path) for path in tried)
            remedy = "write / instead of \\" if "\\" in str(tried[0]) else download_hint(yaml)
            return f"{yaml.where(*key)}: {split}: not found at {places}; {remedy}"
        sources.append(source)
    return tuple(sources)


def _require_complete(yaml: YamlFile, found: Mapping[Split, tuple[Path, ...] | str], roots: Sequence[Path]) -> None:
    """Reject an incomplete shipped data set, before downloading anything.

    Args:
        yaml: the shipped yaml.
        found: sources of the required splits, or the reason why there are none.
        roots: folders that may contain a part of the data set.
    Raises:
        ValueError: names the missing part.
    """
    for split, sources in found.items():
        if isinstance(sources, str):
            missing = _first_missing_source(yaml, split, roots)
        else:
            missing = next(filter(None, map(missing_part, sources)), None)
        if missing is not None:
            problem = f"the data set is incomplete, {printable(missing)} is missing or empty"
            remedy = f"add it, or move the data set's folder away and {download_hint(yaml)}"
            raise ValueError(f"{yaml.where(split)}: {split}: {problem}; {remedy}")


def _first_missing_source(yaml: YamlFile, split: Split, roots: Sequence[Path]) -> Path | None:
    """Return the first missing source in a folder that contains another part of the data set."""
    value = yaml.data[split]
    names = value if isinstance(value, list) else [value]
    root = next((root for root in roots if any((root / part).exists() for part in (*_PARTS, *names))), None)
    return None if root is None else next((root / name for name in names if not (root / name).exists()), None)


def _candidates(path: Path, roots: list[Path]) -> list[Path]:
    if path.is_absolute():
        return [Path(os.path.abspath(path))]
    candidates = [root / path for root in roots]
    if path.parts[:1] == ("..",):  # Roboflow's exports use ../train/images for a folder next to the yaml
        candidates += [root.joinpath(*path.parts[1:]) for root in roots]
    return list(dict.fromkeys(Path(os.path.abspath(candidate)) for candidate in candidates))


def _download(yaml: YamlFile, roots: list[Path], require: Sequence[Split], *, shipped: bool) -> None:
    """Download the yaml's archives, if any, into the data set's folder; concurrent processes wait for one of them."""
    downloads = archives(yaml)
    if not downloads:
        return
    # A shipped yaml's first folder is YOLOv5's ../datasets, which may belong to others, so the last one is used.
    root, allowed_below = (roots[-1], [Path.cwd()]) if shipped else (roots[0], [yaml.path.parent, Path.cwd()])
    with _only_one(root.parent):
        if not any(isinstance(_sources(yaml, split, roots), str) for split in require):
            return
        fetched = fetch_into(
            root, downloads, class_names=_class_names(yaml, optional=True), allowed_below=allowed_below
        )
    _log.info("Unpacked %d files into %s", len(fetched.unpacked.files), printable(root))
    if left := fetched.unpacked.skipped:
        _log.warning(
            "Skipped %d hidden files or files other than images, labels and texts; the first is %s",
            len(left),
            printable(left[0]),
        )
    if fetched.problems:
        _log.warning("Skipped %d invalid annotations; first: %s", len(fetched.problems), fetched.problems[0])


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder or, if it does not exist, on its nearest existing parent."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    handle = os.open(existing, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _class_names(yaml: YamlFile, *, optional: bool) -> tuple[str, ...]:
    names, count = yaml.data.get("names"), yaml.data.get("nc")
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_CLASSES):
        raise ValueError(f"{yaml.where('nc')}: nc must be an integer from 1 to {MAX_CLASSES}, found {count!r}")
    if names is None:
        if count is None and not optional:
            raise ValueError(f"{printable(yaml.path)}: has neither `names` nor `nc`; list the classes in `names`")
        return tuple(f"class{index}" for index in range(count or 0))
    listed = _listed_names(yaml, names)
    if count is not None and count != len(listed):
        raise ValueError(
            f"{yaml.where('nc')}: nc is {count}, but names has {quantity(len(listed), 'class')}; correct one of them"
        )
    return listed


def _listed_names(yaml: YamlFile, names: Any) -> tuple[str, ...]:
    if isinstance(names, list):
        keys: list[int] = list(range(len(names)))
    elif isinstance(names, dict):
        for key in names:
            if type(key) is not int:
                raise ValueError(f"{yaml.where('names', key)}: names: {key!r:.60} is not a class index (0, 1, 2 ...)")
            if key < 0:
                raise ValueError(f"{yaml.where('names', key)}: names: class {key} is negative; classes count from 0")
        keys = sorted(names)
    else:
        raise ValueError(f"{yaml.where('names')}: names must be a list or `index: name` lines, found {names!r:.60}")
    if not 1 <= len(keys) <= MAX_CLASSES:
        raise ValueError(f"{yaml.where('names')}: {len(keys)} class names; must be 1 to {MAX_CLASSES}")
    missing = next((index for index, key in enumerate(keys) if index != key), None)
    if missing is not None:
        raise ValueError(f"{yaml.where('names')}: names has no class {missing}; indices must be 0 to {len(keys) - 1}")
    return tuple(_one_name(yaml, key) for key in keys)


def _one_name(yaml: YamlFile, key: int) -> str:
    """Return the name as written, because yaml would convert names such as `no` and `007`."""
    text = yaml.scalar_text("names", key)
    if not text or not text.isprintable():
        raise ValueError(
            f"{yaml.where('names', key)}: class {key} must have a printable name, found {yaml.data['names'][key]!r:.60}"
        )
    return text
