"""Invalid yaml files for data sets, hyper-parameters and networks; each must be rejected with a one-line message."""

from pathlib import Path

import yaml

from graph_train.settings.hyperparameters import Hyperparameters
from tests.corpus.images import encoded
from tests.graph_train.tiny import TINY

SYNTAX: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n# only a comment\n",
    "scalar": b"just text\n",
    "number": b"42\n",
    "list": b"- a\n- b\n",
    "null": b"~\n",
    "binary": bytes(range(256)),
    "zeros": bytes(3000),
    "an-image": encoded(),
    "utf-16": "path: .\n".encode("utf-16"),
    "latin-1": "path: .\nname: é\n".encode("latin-1"),
    "tabs": b"path: .\n\ttrain: x\n",
    "open-bracket": b"path: [\n",
    "open-quote": b'path: "\n',
    "colons": b"a: b: c\n",
    "two-documents": b"path: .\n---\npath: .\n",
    "python-object": b"!!python/object/apply:os.system ['touch trap']\n",
    "python-name": b"path: !!python/name:os.system\n",
    "python-module": b"path: !!python/module:os\n",
    "python-tuple": b"path: !!python/tuple [1]\n",
    "own-tag": b"path: !thing {a: b}\n",
    "include": b"path: !include /etc/passwd\n",
    "merge": b"base: &a {x: 1}\nuse: {<<: *a}\n",
    "alias-loop": b"a: &a [*a]\n",
    "alias-unknown": b"a: *b\n",
    "billion_laughs": b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 10)),
    "deep": b"a: " + b"[" * 5000 + b"]" * 5000 + b"\n",
    "deep-maps": b"".join(b" " * n + b"a:\n" for n in range(500)),
    "long": b"# " + b"x" * 2_000_000 + b"\npath: .\n",
    "long-number": b"path: " + b"9" * 5000 + b"\n",
    "sexagesimal": b"path: " + b"1:" * 300 + b"1\n",
    "repeated-key": b"path: .\npath: ..\n",
    "list-as-key": b"? [a, b]\n: c\n",
    "control": b'path: "\\0"\ntrain: "\\0"\n',
    "surrogate": b'path: "\\uD800"\ntrain: "\\uD800"\nval: x\nnames: [a]\n',
    "bad-escape": b'path: "\\q"\n',
    "reserved": b"path: @x\n",
}
"""Invalid for every yaml reader of the program."""

DATA: dict[str, str] = {
    "no-train": "val: images\nnames: [a]",
    "no-names": "train: images\nval: images",
    "train-missing": "train: nowhere\nval: images\nnames: [a]",
    "train-number": "train: 3\nval: images\nnames: [a]",
    "train-mapping": "train: {a: b}\nval: images\nnames: [a]",
    "train-nested": "train: [[images]]\nval: images\nnames: [a]",
    "train-bool": "train: yes\nval: images\nnames: [a]",
    "train-yaml": "train: data.yaml\nval: images\nnames: [a]",
    "train-null-byte": 'train: "a\\0b"\nval: images\nnames: [a]',
    "train-pipe": "train: pipe.txt\nval: images\nnames: [a]",
    "train-pipe-json": "train: pipe.json\nval: images\nnames: [a]",
    "train-binary-list": "train: binary.txt\nval: images\nnames: [a]",
    "train-bad-json": "train: bad.json\nval: images\nnames: [a]",
    "train-empty-folder": "train: empty\nval: images\nnames: [a]",
    "path-list": "path: [a]\ntrain: images\nval: images\nnames: [a]",
    "path-long": f"path: {'x' * 5000}\ntrain: images\nval: images\nnames: [a]",
    "nc-other": "train: images\nval: images\nnc: 5\nnames: [a]",
    "nc-zero": "train: images\nval: images\nnc: 0\nnames: []",
    "nc-negative": "train: images\nval: images\nnc: -1\nnames: [a]",
    "nc-huge": "train: images\nval: images\nnc: 999999999",
    "nc-float": "train: images\nval: images\nnc: 1.5\nnames: [a]",
    "nc-nan": "train: images\nval: images\nnc: .nan\nnames: [a]",
    "names-text": "train: images\nval: images\nnames: cat",
    "names-gap": "train: images\nval: images\nnames: {0: a, 5: b}",
    "names-float-keys": "train: images\nval: images\nnames: {0.5: a}",
    "names-nested": "train: images\nval: images\nnames: [[a]]",
    "names-control": 'train: images\nval: images\nnames: ["a\\e[31m"]',
}

HYP: dict[str, str] = {
    "unknown": "lr00: 0.1",
    "text": "lr0: fast",
    "exponent": "lr0: 1e-2",
    "nan": "lr0: .nan",
    "inf": "lr0: .inf",
    "negative": "lr0: -0.1",
    "huge": "degrees: 1.0e+30",
    "bool": "mosaic: yes",
    "list": "box: [0.05]",
    "null": "box:",
    "mapping": "box: {a: 1}",
    "date": "box: 2020-01-01",
    "number-key": "3: 4",
}


def _network(**changes: object) -> str:
    return yaml.safe_dump({**TINY, **changes})


CFG: dict[str, str] = {
    "no-head": _network(head=[]),
    "no-backbone": yaml.safe_dump({"nc": 3, "head": TINY["head"], "anchors": TINY["anchors"]}),
    "nc-text": _network(nc="three"),
    "nc-huge": _network(nc=10**9),
    "row-short": _network(backbone=[[-1, 1, "Conv"]]),
    "row-text": _network(backbone=["Conv"]),
    "block-unknown": _network(backbone=[[-1, 1, "os.system", ["touch trap"]]]),
    "block-code": _network(backbone=[[-1, 1, "__import__('os').system('touch trap')", []]]),
    "from-later": _network(backbone=[[7, 1, "Conv", [8]]]),
    "from-nan": _network(backbone=[[float("nan"), 1, "Conv", [8]]]),
    "repeats-huge": _network(backbone=[[-1, 10**9, "C3", [8]]]),
    "channels-huge": _network(backbone=[[-1, 1, "Conv", [10**12]]]),
    "channels-inf": _network(backbone=[[-1, 1, "Conv", [float("inf")]]]),
    "kernel-huge": _network(backbone=[[-1, 1, "Conv", [8, 99999, 1]]]),
    "upsample-inf": _network(backbone=[[-1, 1, "nn.Upsample", ["None", float("inf"), "nearest"]]]),
    "width-nan": _network(width_multiple=float("nan")),
    "depth-huge": _network(depth_multiple=1e30),
    "anchors-nan": _network(anchors=[[float("nan")] * 6] * 2),
    "anchors-huge": _network(anchors=10**9),
    "anchors-negative": _network(anchors=[[-1, -1, -1, -1, -1, -1]] * 2),
    "activation-code": _network(activation="__import__('os').system('touch trap')"),
    "activation-deep": _network(activation="(" * 5000),
    "other-key": _network(script="touch trap"),
}


def write_data_cases(root: Path) -> dict[str, Path]:
    """Write the dataset yamls, next to a valid folder `images` and some files that are no sources."""
    import os

    (root / "images").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "images" / "a.jpg").write_bytes(encoded())
    (root / "images" / "a.txt").write_bytes(b"0 0.5 0.5 0.5 0.5\n")
    (root / "binary.txt").write_bytes(bytes(200))
    (root / "bad.json").write_bytes(b'{"images": [1, 2')
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    for name in ("pipe.txt", "pipe.json"):
        os.mkfifo(root / name)
    return _written(root, {**SYNTAX, **{name: text.encode() for name, text in DATA.items()}})


def write_hyp_cases(root: Path) -> dict[str, Path]:
    """Write hyper-parameter files."""
    whole = yaml.safe_dump(Hyperparameters().as_dict()).encode()
    cases = {**SYNTAX, **{name: text.encode() for name, text in HYP.items()}, "cut": whole[: len(whole) // 2 - 3]}
    return _written(root, cases)


def write_cfg_cases(root: Path) -> dict[str, Path]:
    """Write model yamls."""
    return _written(root, {**SYNTAX, **{name: text.encode() for name, text in CFG.items()}})


def _written(root: Path, cases: dict[str, bytes]) -> dict[str, Path]:
    root.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, content in cases.items():
        files[name] = root / f"case-{name}.yaml"
        files[name].write_bytes(content)
    return files
