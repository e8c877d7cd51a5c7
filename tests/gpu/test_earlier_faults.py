"""Six faults of the CUDA path at commit e1be6a7: each test fails there and passes now, and none needs a GPU.

`python -m tests.gpu.on_checkout FOLDER` runs this file with the code of another checkout, so it uses only what that
commit has.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from nvidia.dali import Pipeline

from graph_train.host import devices
from graph_train.host import memory as host_memory
from graph_train.host.memory import DeviceMemory
from graph_train.ranks.launcher import RankInfo
from graph_train.training import assembly
from graph_train.training.setup import Setup
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.shard import Shard
from tests.distributed.jobs import free_port
from tests.pipelines.rendered import rendered_index

JOB = Path(__file__).with_name("run_of_a_gpu_job.py")
GB = 10**9


def _module(*names: str) -> Any:
    """Import the first module that exists: its name, and former names for earlier commits."""
    return importlib.import_module(next(name for name in names if importlib.util.find_spec(name)))


batch_memory = _module("graph_train.training.batch_memory", "graph_train.launch.batch_memory")
_runner = _module("tests.graph_train.training_runner", "tests.graph_train.lab")
TrainingRunner: Any = getattr(_runner, "TrainingRunner", None) or _runner.Lab


def step_for_a_gpu(folder: Path, *capabilities: str, **flags: Any) -> dict[str, Any]:
    """Return how the step of a run for GPUs, one per rank, is compiled; see `run_of_a_gpu_job`."""
    ranks = len(capabilities)
    settings = TrainingRunner(folder).flags(graph=True, kernels="require", device="0", **flags)
    words = json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in settings.items()})
    shared = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    launcher = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(ranks):
        variables = {**launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        command = [sys.executable, str(JOB), str(folder / "found.json"), words, *capabilities]
        with (folder / f"rank{rank}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env={**shared, **variables}))
    for process in started:
        process.wait(400)
    if not (folder / "found.json").exists():  # not an assertion: it would count as the fault
        raise RuntimeError((folder / "rank0.log").read_text()[-3000:])
    found = json.loads((folder / "found.json").read_text())
    assert np.isfinite(found["loss"])
    return dict(found)


def test_default_step_avoids_oneflow_mixed_precision(tmp_path: Path) -> None:
    """OneFlow's mixed precision mixed float16 and float32 gradients in one concatenation, which does not compile."""
    found = step_for_a_gpu(tmp_path, "7.5")
    assert [job["oneflow_amp"] for job in found["jobs"]] == [False]
    assert found["activations"] == "FLOAT16"


@pytest.mark.distributed
def test_sync_batch_norm_sums_are_float32(tmp_path: Path) -> None:
    """OneFlow's mixed precision stored its own sums over all pixels of a batch in float16, which ends at 65,504."""
    found = step_for_a_gpu(tmp_path, "7.5", "7.5", sync_bn=True)
    (job,) = found["jobs"]
    assert job["sums"]
    assert [name for name, _ in job["sums"] if name.startswith("reduce") and job["oneflow_amp"]] == []
    assert {stored for _, stored in job["sums"]} == {"kFloat"}


@dataclass
class Drawing:
    """A DALI pipeline for a GPU that was defined and fed, not built."""

    gpu: int | None
    operators: list[Any]
    fed: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def pastes_on_gpu(self) -> list[str]:
        """Names of operators that paste on the GPU."""
        return [op.name for op in self.operators if "MultiPaste" in op.name and op.outputs[0].device == "gpu"]


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> dict[Pipeline, Drawing]:
    """Record what is defined and fed while a test lasts; building and running would need the GPU."""
    found: dict[Pipeline, Drawing] = {}

    def build(self: Pipeline) -> None:
        self._build_graph()
        found[self] = Drawing(self.device_id, list(self._ops))

    def feed(self: Pipeline, name: str, values: Any) -> None:
        found[self].fed.setdefault(name, []).append(values)

    monkeypatch.setattr(Pipeline, "build", build)
    monkeypatch.setattr(Pipeline, "feed_input", feed)
    monkeypatch.setattr(Pipeline, "share_outputs", lambda _: [None])
    for name in ("schedule_run", "release_outputs", "_shutdown"):
        monkeypatch.setattr(Pipeline, name, lambda _: None)
    return found


def define_pipelines(folder: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the training and validation pipelines of a rank with its own GPU."""
    monkeypatch.setattr(Setup, "augment", AugmentConfig())
    monkeypatch.setattr(Setup, "shard", Shard(rank, 4))
    options = SimpleNamespace(data=SimpleNamespace(cache=None, workers=1), optim=SimpleNamespace(batch_size=4, seed=0))
    index = rendered_index(folder, images=4)
    data: Any = SimpleNamespace(train=index, val=index)
    of_rank: dict[str, Any] = {"rank": RankInfo(rank, 4, rank)} if "rank" in {one.name for one in fields(Setup)} else {}
    settings: dict[str, Any] = {"options": options, "hyp": None, "data": data, "image_px": 64, **of_rank}
    setup = Setup(device=f"cuda:{rank}", **settings)
    for pipeline in assembly._pipelines(setup, stride=32):
        pipeline.close()


def test_gpu_graph_does_not_use_multi_paste(
    tmp_path: Path, drawings: dict[Pipeline, Drawing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, `fn.multi_paste` of DALI 2.4 reads all inputs with the shape of the first one, the canvas: of narrower
    tiles, it would read wrong rows, and memory beyond their end."""
    define_pipelines(tmp_path, 0, monkeypatch)
    assert [drawing.gpu for drawing in drawings.values()] == [0, 0]
    assert [drawing.pastes_on_gpu for drawing in drawings.values()] == [[], []]


def test_empty_area_is_not_pasted_on_gpu(
    tmp_path: Path, drawings: dict[Pipeline, Drawing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, an empty area covers the whole canvas; at that commit, slots without a tile had empty areas."""
    define_pipelines(tmp_path, 0, monkeypatch)
    for drawing in drawings.values():
        assert drawing.fed["canvas"]
        areas = drawing.fed.get("areas", []) if drawing.pastes_on_gpu else []
        assert all(np.asarray(batch).all() for batch in areas), areas[0]


@pytest.mark.parametrize("rank", [1, 3])
def test_every_rank_decodes_and_renders_on_its_own_gpu(
    tmp_path: Path, drawings: dict[Pipeline, Drawing], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At that commit, all ranks decoded and rendered on GPU 0."""
    define_pipelines(tmp_path, rank, monkeypatch)
    assert [drawing.gpu for drawing in drawings.values()] == [rank, rank]


def test_auto_batch_measurements_do_not_accumulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled graph keeps its memory, here 0.5 GB and 0.25 GB for each image: what earlier batches took was counted
    with the later ones, so `--batch-size -1` took less than half of what fits."""
    used, found = [5 * GB], list[Any]()

    def step(_: Any, images: int) -> None:
        used[0] += GB // 2 + images * GB // 4

    run = SimpleNamespace(
        train_pipeline=SimpleNamespace(epoch=lambda _: iter([None])),
        setup=SimpleNamespace(image_px=64),
        inference=MagicMock(),
    )
    monkeypatch.setattr(devices, "select_device", lambda *_: "cuda:0")
    monkeypatch.setattr(assembly, "assemble", lambda *_, **__: run)
    monkeypatch.setattr(host_memory, "device_memory", lambda _: DeviceMemory(80 * GB - used[0], 80 * GB))
    monkeypatch.setattr(batch_memory, "_facts", lambda *_, **__: None)
    monkeypatch.setattr(batch_memory, "_step", step)
    hyp = assembly.Hyperparameters().as_dict()
    request = {"batches": [1, 2, 4, 8], "options": {"cfg": "yolov5n.yaml", "graph": True}, "hyp": hyp}
    batch_memory._measure(request, found.append)
    measured = [astuple(item) for item in found if item is not None]  # the fields have other names at that commit
    of_steps = [taken for phase, _, taken in measured if phase == "step"]
    assert of_steps == [GB // 2 + images * GB // 4 for images in (1, 2, 4, 8)]
