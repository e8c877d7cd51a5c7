"""Damaged weight files: safetensors, our checkpoints, PyTorch archives and OneFlow folders."""

import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.safetensors_file import checksum, write_safetensors
from tests.corpus.images import encoded
from tests.graph_train.tiny import TINY
from tests.models import torch_files

ARRAYS = {"model.0.conv.weight": np.ones((8, 3, 3, 3), np.float32), "model.0.bn.weight": np.ones(8, np.float32)}


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(kind: str = "F32", shape: list[Any] | None = None, offsets: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": kind, "shape": [2] if shape is None else shape, "data_offsets": offsets or [0, 8]}


def checkpoint(header: Any, arrays: Mapping[str, np.ndarray], *, signed: bool = True) -> bytes:
    """Return a training checkpoint with a valid checksum, so that its header is parsed."""
    if isinstance(header, dict):
        header = {"format": "graph-train checkpoint", "version": 1, **header}
        if signed:
            header["checksum"] = checksum(arrays, header)
    stream = io.BytesIO()
    write_safetensors(stream, arrays, {"graph_train": json.dumps(header)})
    return stream.getvalue()


def _safetensors_cases() -> dict[str, bytes]:
    two = np.ones(2, np.float32).tobytes()
    good = safetensors({"a": entry()}, two)
    return {
        "cut-header": good[:20],
        "cut-data": good[:-3],
        "more-data": good + b"x",
        "header-huge": safetensors({"a": entry()}, two, length=2**63),
        "header-1gb": safetensors({"a": entry()}, two, length=2**30),
        "header-zero": safetensors(b"", b"", length=0),
        "header-list": safetensors(b"[1, 2]  "),
        "header-deep": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header-no-utf8": safetensors(b'{"\xff": 1}'),
        "header-repeats": safetensors(b'{"a":' + json.dumps(entry()).encode() + b',"a":1}', two),
        "shape-huge": safetensors({"a": entry(shape=[2**62, 4])}, two),
        "shape-negative": safetensors({"a": entry(shape=[-1])}, two),
        "shape-float": safetensors({"a": entry(shape=[2.0])}, two),
        "shape-other": safetensors({"a": entry(shape=[3])}, two),
        "offsets-backwards": safetensors({"a": entry(offsets=[8, 0])}, two),
        "offsets-outside": safetensors({"a": entry(offsets=[0, 1000])}, two),
        "offsets-overlap": safetensors({"a": entry(), "b": entry()}, two),
        "type-unknown": safetensors({"a": entry("F33")}, two),
        "type-bf16": safetensors({"a": entry("BF16", [4])}, two),
        "type-f8": safetensors({"a": entry("F8_E4M3", [8])}, two),
        "metadata-number": safetensors({"__metadata__": {"a": 1}, "a": entry()}, two),
        "metadata-deep": safetensors({"__metadata__": {"graph_train": "[" * 100_000}, "a": entry()}, two),
        "nothing-inside": safetensors({}),
        "no-network": safetensors({"a": entry()}, two),
    }


def _own_cases() -> dict[str, bytes]:
    def described(arrays: Mapping[str, np.ndarray], config: Any = TINY) -> bytes:
        header = {"class_names": ["a", "b", "c"], "stride": [8, 16], "config": config}
        stream = io.BytesIO()
        texts = {"format": "pt", **{key: json.dumps(value) for key, value in header.items()}}
        write_safetensors(stream, arrays, texts)
        return stream.getvalue()

    bad = {**ARRAYS, "model.0.bn.weight": np.full(8, np.nan, np.float32)}
    return {
        "lacks-most": described(ARRAYS),
        "not-finite": described(bad),
        "config-code": described(ARRAYS, {**TINY, "backbone": [[-1, 1, "os.system", ["touch trap"]]]}),
        "config-bomb": described(ARRAYS, {**TINY, "backbone": [[-1, 10**9, "C3", [10**9]]]}),
        "config-text": described(ARRAYS, "yolov5n"),
        "checkpoint-list": checkpoint([1, 2], ARRAYS),
        "checkpoint-number": checkpoint(3, ARRAYS),
        "checkpoint-bare": checkpoint({}, ARRAYS),
        "checkpoint-unsigned": checkpoint({"config": TINY}, ARRAYS, signed=False),
    }


def _archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


class _Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch trap",)


def _pytorch_cases() -> dict[str, bytes]:
    evil = pickle.dumps({"model": _Evil()}, protocol=2)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    whole = _archive({"a/data.pkl": torch_files.named("models.yolo", "Model") + b".", "a/version": b"3"})
    return {
        "evil-zip": _archive({"a/data.pkl": evil, "a/version": b"3"}),
        "evil-bare": evil,
        "evil-eval": _archive({"a/data.pkl": b"cbuiltins\neval\n(X\x09\x00\x00\x00print(1)\ntR."}),
        "evil-getattr": _archive({"a/data.pkl": b"cbuiltins\ngetattr\n(NNtR."}),
        "evil-protocol-4": _archive({"a/data.pkl": pickle.dumps(_Evil(), protocol=4)}),
        "evil-protocol-0": _archive({"a/data.pkl": pickle.dumps(_Evil(), protocol=0)}),
        "old-format": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "old-tar": stream.getvalue(),
        "script": _archive({"a/data.pkl": b"N.", "a/constants.pkl": b"N."}),
        "no-pickle": _archive({"readme.txt": b"hello"}),
        "two-pickles": _archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}),
        "compressed-bomb": _archive({"a/data.pkl": bytes(100 << 20)}, zipfile.ZIP_DEFLATED),
        "none": _archive({"a/data.pkl": b"N."}),
        "not-ended": _archive({"a/data.pkl": b"}" * 1000}),
        "deep": _archive({"a/data.pkl": b"(" * 200_000 + b"l" * 200_000 + b"."}),
        "deep-lists": _archive({"a/data.pkl": b"]" * 200_000 + b"a" * 199_999 + b"."}),
        "doubling": _archive({"a/data.pkl": b"]" + b"2\x86" * 400 + b"."}),
        "cut": whole[:-30],
        "cut-half": whole[: len(whole) // 2],
        "text": b"no weights at all\n",
        "empty": b"",
        "an-image": encoded(),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "page": b"<!DOCTYPE html><html></html>",
        "zeros": bytes(4096),
    }


def write_weight_cases(root: Path) -> dict[str, Path]:
    """Write all cases and return them by name; `graph-export` must reject each."""
    root.mkdir(parents=True)
    found = {}
    for suffix, cases in (("safetensors", {**_safetensors_cases(), **_own_cases()}), ("pt", _pytorch_cases())):
        for name, content in cases.items():
            found[f"{name}.{suffix}"] = root / f"case-{name}.{suffix}"
            found[f"{name}.{suffix}"].write_bytes(content)
    for name, files in _oneflow_cases().items():
        folder = root / f"case-{name}"
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        found[name] = folder
    return found


def _oneflow_cases() -> dict[str, dict[str, bytes]]:
    meta = b"shape { dim: 2 }\ndata_type: kFloat\n"
    two = np.ones(2, np.float32).tobytes()
    return {
        "folder-empty": {"readme.txt": b""},
        "folder-evil": {"pickled_data": pickle.dumps({"protocol_version": 1, "data": _Evil()})},
        "folder-noise": {"pickled_data": bytes(range(256))},
        "folder-protocol": {"pickled_data": pickle.dumps({"protocol_version": 7, "data": {}}, protocol=2)},
        "folder-empty-pickle": {"pickled_data": b""},
        "folder-short": {"w/out": two[:-1], "w/meta": meta},
        "folder-no-meta": {"w/out": two},
        "folder-type": {"w/out": two, "w/meta": meta.replace(b"kFloat", b"kWhatever")},
        "folder-shape-huge": {
            "w/out": two,
            "w/meta": b"shape { dim: 999999999999 dim: 999999999999 }\ndata_type: kFloat",
        },
        "folder-meta-noise": {"w/out": two, "w/meta": bytes(range(256))},
        "folder-meta-huge": {"w/out": two, "w/meta": meta * 10_000},
    }


def resumable(folder: Path, content: bytes) -> Path:
    """Create a run folder whose only checkpoint has this content."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "last.safetensors").write_bytes(content)
    return folder


__all__ = ["ARRAYS", "checkpoint", "resumable", "write_weight_cases"]
