"""Settings of `graph-check convert`: flags, defaults and help. Imports nothing heavy."""

import argparse
from dataclasses import dataclass

from graph_train.settings.flag_table import SWITCH, TEXTS, check_flags, flag, parser_of

_SOURCE = "Pascal VOC: a folder of xml files, or a list in ImageSets/Main; COCO: an instances json"


@dataclass(frozen=True)
class ConvertOptions:
    """All settings of `graph-check convert`, validated on construction."""

    train: str = flag("", f"training split. {_SOURCE}")
    val: str = flag("", "validation split, same formats as --train")
    test: str = flag("", "test split, same formats as --train")
    output: str = flag("", "new folder for images/, labels/ and data.yaml")
    names: tuple[str, ...] = flag(
        (),
        "class names in the order of their numbers (default: alphabetical for VOC, by "
        "category id for COCO); objects of other classes are errors",
        kind=TEXTS,
    )
    copy: bool = flag(False, "copy the images instead of creating links", kind=SWITCH)
    problems: str = flag("", "write the problems to this file, one per line")
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.train or not self.val:
            raise ValueError("--train and --val: give the annotations of both splits")
        if not self.output:
            raise ValueError("--output: give the name of a new folder")
        if len(set(self.names)) < len(self.names):
            raise ValueError("--names: duplicate class name")
        for name in self.names:
            if not name.strip() or not name.isprintable():
                raise ValueError(f"--names {name!r}: must be a printable class name")
        check_flags(self)


def build_convert_parser() -> argparse.ArgumentParser:
    """Return the parser; the namespace contains only the flags that were given."""
    about = "Convert Pascal VOC xml or COCO json annotations to a YOLO data set. The original images are not modified."
    codes = "0 no errors, 1 some annotations were skipped, 2 user error"
    return parser_of(ConvertOptions, prog="graph-check convert", description=about, exit_codes=codes)
