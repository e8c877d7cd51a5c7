"""Commands on damaged yaml files: a one-line message that names the file, and no files left behind."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.corpus import yamls
from tests.corpus.commands import ERRORS_FOUND, USER_ERROR, run_child, run_in_process

SECONDS = 20.0
KINDS: dict[str, tuple[Callable[[Path], dict[str, Path]], str, list[str]]] = {
    # writer of the cases, command that reads them, and its flags, of which the last one takes the case
    "data": (yamls.write_data_cases, "graph-check", ["--data"]),
    "hyp": (yamls.write_hyp_cases, "graph-train", ["--data", "nowhere.yaml", "--cfg", "yolov5n.yaml", "--hyp"]),
    "cfg": (yamls.write_cfg_cases, "graph-check", ["--data", "{sound}", "--cfg"]),
}
NAMED_OTHERWISE = {"train-pipe", "train-pipe-json", "train-binary-list", "train-bad-json", "train-yaml"}
"""Cases in which the source named by the yaml is at fault."""


def sound_data(root: Path) -> Path:
    yamls.write_data_cases(root)
    return root / "data.yaml"


@pytest.mark.parametrize("kind", KINDS)
def test_each_damaged_yaml_is_rejected_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, command, flags = KINDS[kind]
    cases, sound, here = write(tmp_path / "cases"), sound_data(tmp_path / "sound"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name, file in cases.items():
        start = time.process_time()
        allowed = [ERRORS_FOUND] if name == "train-empty-folder" else [USER_ERROR]
        ended = run_in_process(
            command, *(flag.format(sound=sound) for flag in flags), file, capsys=capsys, may_end=allowed
        )
        assert time.process_time() - start < SECONDS, name
        if allowed == [USER_ERROR] and name not in NAMED_OTHERWISE:
            assert file.name in ended.error, (name, ended.error)
        assert len(ended.error) < 1500 and ended.error.isprintable(), (name, ended.error)
        assert not list(here.iterdir()), name


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--data", "--hyp", "--cfg"])
def test_training_rejects_each_in_subprocess(flag: str, tmp_path: Path) -> None:
    write = {"--data": yamls.write_data_cases, "--hyp": yamls.write_hyp_cases, "--cfg": yamls.write_cfg_cases}[flag]
    sound = sound_data(tmp_path / "sound")
    for name, file in write(tmp_path / "cases").items():
        given = {"--data": sound, "--cfg": "yolov5n.yaml", "--device": "cpu", flag: file}
        arguments = [value for pair in given.items() for value in pair]
        ended = run_child("graph-train", *arguments, cwd=tmp_path, may_end=[USER_ERROR], seconds=60)
        assert name in NAMED_OTHERWISE or file.name in ended.error or name == "train-empty-folder", ended.error
    assert not (tmp_path / "trap").exists()
