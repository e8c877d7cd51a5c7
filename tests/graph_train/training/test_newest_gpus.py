"""GPUs that OneFlow has no code for: networks whose steps need it are refused before anything runs there."""

from pathlib import Path

import pytest
import yaml

from graph_train.engine.precision import ComputeDevice
from graph_train.training import assembly
from tests.graph_train.lab import Lab
from tests.models.every_block import EVERY_BLOCK


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Pretend a GPU of compute capability 9.0 for all that is decided by that; the tensors live on the CPU."""
    hopper = ComputeDevice("GPU 0: pretended", 90, plugin=True)
    monkeypatch.setattr(assembly, "compute_device", lambda *_, **__: hopper)
    return Lab(tmp_path)


def test_a_network_of_covered_ops_is_taken(lab: Lab) -> None:
    lab.assemble(kernels="require", amp=False).close()


def test_ops_of_oneflow_are_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    cfg = tmp_path / "every_block.yaml"
    cfg.write_text(yaml.safe_dump(EVERY_BLOCK))
    with pytest.raises(ValueError, match=r"compute capability 9\.0.* OneFlow .*softmax.*--device"):
        lab.assemble(kernels="require", amp=False, cfg=cfg)


def test_the_composed_loss_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="remove --no-bbox-iou-optim"):
        lab.assemble(kernels="require", amp=False, bbox_iou_optim=False)
