"""The report of a run: content, safety, and rendering in a browser."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from graph_train.cli.val import main as val_main
from graph_train.hooks.callbacks import Callbacks
from graph_train.launch.train import train
from graph_train.report.content import results_content, times_content
from graph_train.report.page import json_for_html, render
from graph_train.report.samples import MAX_BOXES, SAMPLES, SampleCollector, images_on_rank
from graph_train.runs.checkpoint import load_checkpoint
from graph_train.runs.results_csv import RESULT_KEYS
from graph_train.training.progress import EpochTimes
from pipelines.shard import Shard
from tests.graph_train.report.browser import opened
from tests.graph_train.training_runner import VAL_IMAGES, FinishedRun, TrainingRunner

UNSAFE_NAMES = ("<script>alert(1)</script>", "--><img src=x onerror=alert(2)>", "</script>{{data}} &amp;\"'")
EPOCHS = 3


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TrainingRunner:
    """Return a runner whose class names must be escaped."""
    runner = TrainingRunner(tmp_path_factory.mktemp("runner"))
    content = yaml.safe_load(runner.data.read_text())
    runner.data.write_text(yaml.safe_dump({**content, "names": list(UNSAFE_NAMES)}))
    return runner


@pytest.fixture(scope="module")
def finished(runner: TrainingRunner) -> FinishedRun:
    """Return a run with plots, in graph mode."""
    return runner.train(**runner.detecting(epochs=EPOCHS, noplots=False, graph=True, name="<b>run"))


def numbers(finished: FinishedRun) -> dict[str, Any]:
    return json.loads((finished.folder / "report.json").read_text(encoding="utf-8"))


class _Elements(HTMLParser):
    """The elements of a page as parsed, before any script runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = str(dict(attrs).get("id"))

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


# --- content -------------------------------------------------------------------------------------------------------


def test_report_values_match_run(finished: FinishedRun) -> None:
    content = numbers(finished)
    assert content["state"] == "finished"
    assert content["results"]["epoch"] == [0, 1, 2]
    assert content["results"]["train/box_loss"] == [row["train/box_loss"] for row in finished.rows]
    assert content["validation"]["means"] == [float(value) for value in finished.result.validation.means]
    assert content["validation"]["of"] == "the best weights"
    assert [row["name"] for row in content["validation"]["table"]] == list(UNSAFE_NAMES)
    assert content["data"]["splits"][0] == {"name": "train", "images": 8, "labels": 10, "background": 1, "problems": 0}
    assert sum(item["train"] for item in content["data"]["classes"]) == 10
    assert {name: value for name, value, _ in content["settings"]}["imgsz"] == 64
    assert [item["epoch"] for item in content["times"]] == [0, 1, 2]
    for item in content["times"]:
        assert item["images"] == 8
        assert item["training"] >= item["waiting"] + item["computing"] > 0
        assert item["computing"] >= item["compiling"]
    assert content["times"][0]["compiling"] > 0
    assert content["times"][1]["compiling"] == 0
    assert any(name == "oneflow" for name, _ in content["environment"])


def test_samples_show_labels_from_files(finished: FinishedRun, runner: TrainingRunner) -> None:
    samples = numbers(finished)["samples"]
    assert len(samples) == VAL_IMAGES
    for sample in samples:
        assert (sample["width"], sample["height"]) == (96, 64)
        file = runner.data.parent / "labels" / "val" / Path(sample["name"]).with_suffix(".txt")
        rows = np.array([line.split() for line in file.read_text().splitlines()], float)
        centres = (rows[:, 1:3] - rows[:, 3:5] / 2) * [96, 64]
        found = np.array(sample["labels"])
        np.testing.assert_array_equal(found[:, 0], rows[:, 0])
        np.testing.assert_allclose(found[:, 1:3], centres, atol=0.06)  # written with one decimal


def test_interrupted_epoch_is_counted_once() -> None:
    earlier = [vars(EpochTimes(0, 8, 4.0, 1.0, 2.0, 0.5, 1.0)), vars(EpochTimes(1, 4, 2.0, 0.5, 1.0, 0.0))]
    merged = times_content([EpochTimes(1, 4, 3.0, 0.25, 2.0, 1.0, 0.5)], earlier)
    assert merged == [vars(EpochTimes(0, 8, 4.0, 1.0, 2.0, 0.5, 1.0)), vars(EpochTimes(1, 8, 5.0, 0.75, 3.0, 1.0, 0.5))]


def test_best_epoch_is_last_of_equal_ones() -> None:
    """The best epoch is the one whose weights are kept; epochs without validation do not count."""
    columns = {key: np.zeros(4) for key in ("epoch", *RESULT_KEYS)}
    assert results_content(columns)["best"] is None
    columns["val/box_loss"][:3] = 0.1
    assert results_content(columns)["best"] == 2
    columns["metrics/mAP_0.5"][:2] = 0.7
    content = results_content(columns)
    assert content["best"] == 1
    assert content["results"]["metrics/mAP_0.5"] == [0.7, 0.7, 0, None]
    assert results_content({})["best"] is None


class _Batches:
    """The batches of a split validated in batches of seven."""

    batches_per_epoch = 6

    def images_of(self, batch: int) -> int:
        return min(7, 38 - 7 * batch)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_each_rank_samples_its_own_images(runner: TrainingRunner, ranks: int) -> None:
    """Of eight ranks, only the first one owns the images of a batch of seven; the last batch has three."""
    index, batches, measured = runner.assemble().setup.data.val, cast(Any, _Batches()), 0
    for rank in range(ranks):
        own = images_on_rank(batches, Shard(rank, ranks))
        measured += own
        collector = SampleCollector(index, own)
        collector.start()
        for number in range(own):
            collector.add(str(index.paths[number % len(index)]), np.zeros((0, 6)))
        assert len(collector.samples) == min(SAMPLES, own)
    assert measured == 38


def test_samples_show_most_confident_boxes(runner: TrainingRunner) -> None:
    run = runner.assemble()
    index = run.setup.data.val
    collector = SampleCollector(index, len(index))
    collector.start()
    sure = [[1.04, 2.0, 30.0, 40.0, 0.9 - 0.001 * number, 2] for number in range(MAX_BOXES + 5)]
    unsure = [[0, 0, 9, 9, 0.06, 1], [0, 0, 9, 9, 0.05, 1], [0, 0, 9, 9, 0.04, 0]]
    collector.add(str(index.paths[0]), np.array(sure))
    collector.add(str(index.paths[1]), np.array(unsure))
    first, second = (sample.found for sample in collector.samples)
    assert (len(first), first[0]) == (MAX_BOXES, [2, 1.0, 2.0, 30.0, 40.0, 0.9])
    assert [box[5] for box in second] == [0.06, 0.05]
    run.close()


def test_commands_of_single_class_run(runner: TrainingRunner, tmp_path: Path) -> None:
    found = dict(numbers(runner.train(single_cls=True))["commands"])
    words = shlex.split(found["Validate the best weights:"])
    assert words[0] == "graph-val"
    assert words[-1] == "--single-cls"
    flags = ["--device", "cpu", "--eager", "--noplots", "--workers", "1", "--project", str(tmp_path)]
    assert val_main([*words[1:], *flags]) == 0


# --- unsafe names -----------------------------------------------------------------------------------


def test_names_are_escaped(finished: FinishedRun) -> None:
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    for name in UNSAFE_NAMES:
        assert name not in text
    seen = _Elements(text)
    assert seen.tags.count("script") == 2
    assert "img" not in seen.tags
    assert [item["name"] for item in json.loads(seen.data)["data"]["classes"]] == list(UNSAFE_NAMES)
    assert "<title>&lt;b&gt;run · training report</title>" in text


def test_json_cannot_break_out_of_script_element() -> None:
    value = {"<!--<script>": ["</script>", "\u2028", float("nan"), float("inf"), 1.5]}
    text = json_for_html(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"<!--<script>": ["</script>", "\u2028", None, None, 1.5]}


def test_page_has_no_external_urls(finished: FinishedRun) -> None:
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    links = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.\w+[^\"' )]*", text))
    assert links == {"http://www.w3.org/2000/svg"}  # the name of a language, never fetched


# --- times of writing --------------------------------------------------------------------------------------------


def test_stopped_and_resumed_run(runner: TrainingRunner) -> None:
    stopped = runner.train(epochs=2, noplots=False, stop_after=3)
    content = numbers(stopped)
    assert (content["state"], content["done"]) == ("stopped", 1)
    assert content["validation"]["of"] == "the weights of epoch 0"
    assert any("--resume" in command for _, command in content["commands"])
    before = content["times"][0]
    ended = numbers(runner.train_as_given(resume=stopped.folder))
    assert (ended["state"], ended["done"]) == ("finished", 2)
    assert ended["times"][0] == before
    assert ended["times"][1]["images"] == 8  # four before the stop, four after it
    assert len(ended["samples"]) == VAL_IMAGES


@pytest.mark.parametrize(("flags", "images"), [({"epochs": 1}, 8), ({"epochs": 2, "stop_after": 3}, 4)])
def test_retrained_epochs_are_timed_again(runner: TrainingRunner, flags: dict[str, int], images: int) -> None:
    """A run is killed after the report counted its second epoch but before its checkpoint.

    It resumes from the checkpoint before the epoch, or from one in the middle of it.
    """
    killed = runner.train(**flags)
    content = numbers(killed)
    whole = {**content["times"][0], "epoch": 1, "images": 8, "training": 1000.0}
    (killed.folder / "report.json").write_text(json.dumps({**content, "times": [content["times"][0], whole]}))
    times = numbers(runner.train_as_given(resume=killed.folder, epochs=2))["times"]
    assert [item["images"] for item in times] == [8, images]
    assert times[1]["training"] < 1000


def test_no_images_with_noplots(runner: TrainingRunner) -> None:
    finished = runner.train(epochs=1)
    content = numbers(finished)
    assert content["samples"] == []
    assert len(content["results"]["epoch"]) == 1
    assert "data:image" not in (finished.folder / "report.html").read_text(encoding="utf-8")


def test_epochs_without_validation_have_no_points(runner: TrainingRunner) -> None:
    content = numbers(runner.train(epochs=2, noval=True))
    first, last = content["results"]["metrics/mAP_0.5"]
    assert first is None
    assert last is not None
    assert content["best"] == 1


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[" * 100_000,
        '{"format": 0}',
        {"times": 5},
        {"times": [{"epoch": "x"}]},
        {"samples": [{"path": 5}]},
        {"validation": []},
    ],
    ids=lambda damaged: str(damaged)[:20],
)
def test_damaged_report_of_resumed_run_is_rebuilt(runner: TrainingRunner, damaged: str | dict[str, Any]) -> None:
    stopped = runner.train(epochs=2, stop_after=3)
    if isinstance(damaged, dict):
        damaged = json.dumps({**numbers(stopped), **damaged})
    (stopped.folder / "report.json").write_text(damaged)
    ended = runner.train_as_given(resume=stopped.folder)
    assert "the report covers only" in ended.log
    assert [item["epoch"] for item in numbers(ended)["times"]] == [1]


def test_unwritable_report_does_not_end_training(runner: TrainingRunner) -> None:
    interrupted = runner.train(epochs=2, stop_after=3)
    for name in ("report.html", "report.json"):
        (interrupted.folder / name).unlink()
    callbacks = Callbacks()
    callbacks.register_action("on_pretrain_routine_start", callback=(interrupted.folder / "report.json").mkdir)
    train(resume=interrupted.folder, callbacks=callbacks)
    assert callbacks.failed == ["report"]
    log = (interrupted.folder / "train.log").read_text()
    assert "Callback report failed in on_train_start and is disabled" in log
    assert load_checkpoint(interrupted.folder / "weights" / "last.safetensors").header["cursor"]["finished"]


# --- in a browser --------------------------------------------------------------------------------------------------


def test_desktop_layout(finished: FinishedRun) -> None:
    with opened(finished.folder / "report.html") as shown:
        page = shown.page
        assert page.title() == "<b>run · training report"
        assert page.locator("h1").inner_text() == "<b>run"
        points = shown.points()
        assert points[:13] == [EPOCHS] * 13
        assert page.locator("#classes tbody tr").first.locator("td").first.inner_text() == "all"
        names = page.locator("#classes .scroll").first.locator("tbody td.name").all_inner_texts()
        assert names == ["all", *UNSAFE_NAMES]
        assert page.locator("#samples .pair svg image").count() == 2 * VAL_IMAGES
        assert page.locator("body script").count() == 2
        assert page.locator("img").count() == 0
        assert shown.requests == [(finished.folder / "report.html").resolve().as_uri(), *shown.requests[1:]]
        assert all(url.startswith("data:") for url in shown.requests[1:])
        assert shown.errors == []


def test_hover_toggle_slider_and_sorting(finished: FinishedRun) -> None:
    with opened(finished.folder / "report.html") as shown:
        page = shown.page
        first = page.locator("#curves .chart").first
        box = first.locator("svg").bounding_box()
        page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
        tip = first.locator(".tip").inner_text()
        assert "epoch 2" in tip
        assert f"{finished.rows[2]['train/box_loss']:.3g}"[:4] in tip
        first.locator(".legend button").first.click()
        assert first.locator("path.line").count() == 1
        first.locator("svg").focus()
        page.keyboard.press("ArrowRight")
        assert "epoch 0" in first.locator(".tip").inner_text()
        page.evaluate(
            "document.getElementById('confidence').value = 0.9;"
            "document.getElementById('confidence').dispatchEvent(new Event('input'))"
        )
        confidences = [box[5] for sample in numbers(finished)["samples"] for box in sample["found"]]
        found = sum(confidence >= 0.9 for confidence in confidences)
        assert 0 < found < len(confidences)
        visible = page.evaluate(
            "[...document.querySelectorAll('g[data-confidence]')].filter((g) => !g.style.display).length"
        )
        assert visible == found
        page.locator("#classes thead button", has_text="Labels").click()
        counts = page.locator("#classes .scroll").first.locator("tbody tr td:nth-child(3)").all_inner_texts()
        assert [int(count) for count in counts[1:]] == sorted((int(count) for count in counts[1:]), reverse=True)
        assert shown.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_phone_layout(finished: FinishedRun, dark: bool) -> None:
    with opened(finished.folder / "report.html", width=390, height=844, dark=dark) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 390  # no horizontal overflow
        for table in ("results per class", "confusion matrix"):  # no column needs scrolling, in particular not mAP
            width = f"document.querySelector('[aria-label=\"{table}\"]')"
            assert shown.page.evaluate(f"{width}.scrollWidth <= {width}.clientWidth"), table
        background = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark
        assert shown.errors == []


def test_many_classes_and_no_epochs(finished: FinishedRun, tmp_path: Path) -> None:
    """Show 90 classes with long names, then a report before its first epoch."""
    content = numbers(finished)
    row = content["validation"]["table"][0]
    content["validation"]["table"] = [{**row, "name": f"class number {n} with a long name"} for n in range(90)]
    content["validation"]["confusion"] = None
    content["samples"] = []
    (tmp_path / "many.html").write_text(render(content), encoding="utf-8")
    with opened(tmp_path / "many.html", width=390, height=844) as shown:
        assert shown.page.locator("#classes .scroll").first.locator("tbody tr").count() == 91
        assert shown.errors == []
    empty: dict[str, Any] = {**content, "validation": None, "times": [], "best": None, "done": 0, "state": "running"}
    empty["results"] = {key: [] for key in content["results"]}
    (tmp_path / "empty.html").write_text(render(empty), encoding="utf-8")
    with opened(tmp_path / "empty.html") as shown:
        assert "No epoch has finished yet" in shown.page.locator("#curves").inner_text()
        assert shown.errors == []
