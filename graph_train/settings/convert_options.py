"""The settings of `graph-check convert`: flags, defaults and help. Nothing heavy is imported here."""

import argparse
from dataclasses import dataclass
from typing import Any

from graph_train.settings.flag_table import SWITCH, TEXTS, check_flags, flag, options_of, parser_of

_SOURCE = "Pascal VOC: a folder of xml files or a list of ImageSets/Main; COCO: an instances json"


@dataclass(frozen=True)
class ConvertOptions:
    """All settings of `graph-check convert`; a value that no conversion can use is refused when the object is made."""

    train: str = flag("", f"training split. {_SOURCE}")
    val: str = flag("", "validation split, of the same kinds")
    test: str = flag("", "test split, of the same kinds")
    output: str = flag("", "folder to make: images/, labels/ and data.yaml")
    names: tuple[str, ...] = flag(
        (),
        "class names in the order of their numbers (default: VOC by the alphabet, COCO "
        "by category id); objects of other classes are errors",
        kind=TEXTS,
    )
    copy: bool = flag(False, "copy the images instead of linking to them", kind=SWITCH)
    problems: str = flag("", "file for the problems, one in a line")
    debug: bool = flag(False, "show tracebacks", kind=SWITCH)

    def __post_init__(self) -> None:
        if not self.train or not self.val:
            raise ValueError("--train and --val: name the annotations of both splits")
        if not self.output:
            raise ValueError("--output: name the folder to make")
        if len(set(self.names)) < len(self.names):
            raise ValueError("--names: a class is named twice")
        check_flags(self)


def convert_options(**flags: Any) -> ConvertOptions:
    """Return the options from flag names with underscores.

    Raises:
        ValueError: a name that is no flag (with the nearest match), or a value that cannot be used.
    """
    return options_of(ConvertOptions, flags)


def build_convert_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are left out of the namespace."""
    about = "Makes a YOLO data set of Pascal VOC xml or COCO json annotations. The images stay where they are."
    codes = "0 no errors, 1 something was left out, 2 user error"
    return parser_of(ConvertOptions, prog="graph-check convert", description=about, exit_codes=codes)
