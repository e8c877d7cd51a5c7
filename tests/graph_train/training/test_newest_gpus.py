"""GPUs without OneFlow kernels: covered networks are accepted, steps that need such kernels rejected."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from graph_train.engine import precision
from graph_train.engine.precision import ComputeDevice
from models.catalogue import ACTIVATIONS
from tests.graph_train.training_runner import TrainingRunner
from tests.models.every_block import EVERY_BLOCK


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingRunner:
    """Fake a GPU of compute capability 9.0 for all decisions; tensors stay on the CPU."""
    hopper = ComputeDevice("GPU 0: pretended", 90, plugin=True)
    monkeypatch.setattr(precision, "compute_device", lambda *_, **__: hopper)
    return TrainingRunner(tmp_path)


def test_network_of_covered_ops_is_accepted(runner: TrainingRunner) -> None:
    runner.assemble(kernels="require", amp=False).close()


def _every_activation() -> dict[str, Any]:
    smaller = [[-1, 1, "Conv", [8, 3, 2]]] * 3
    layers = [*smaller, *([-1, 1, "Conv", [8, 3, 1, "None", 1, 1, f"nn.{name}()"]] for name in ACTIVATIONS)]
    head = [[[len(layers) - 1], 1, "Detect", ["nc", "anchors"]]]
    return {"nc": 3, "anchors": [[10, 13, 16, 30, 33, 23]], "backbone": layers, "head": head}


@pytest.mark.parametrize("config", [EVERY_BLOCK, _every_activation()], ids=["blocks", "activations"])
def test_every_block_and_activation_is_accepted(runner: TrainingRunner, tmp_path: Path, config: dict[str, Any]) -> None:
    cfg = tmp_path / "network.yaml"
    cfg.write_text(yaml.safe_dump(config))
    runner.assemble(kernels="require", amp=False, cfg=cfg).close()


def test_composed_loss_is_rejected_with_op_names(runner: TrainingRunner) -> None:
    wanted = r"compute capability 9\.0.* OneFlow .*broadcast_div.*remove --no-bbox-iou-optim, or use --device"
    with pytest.raises(ValueError, match=wanted):
        runner.assemble(kernels="require", amp=False, bbox_iou_optim=False)
