"""Start-up imports no package that only some runs need, or that is needed only later."""

import pytest

from tests.python_process import run_python

DEFERRED = (
    *("scipy", "matplotlib", "pycocotools", "pooch", "requests", "cv2", "onnx", "onnxruntime", "wandb", "mlflow"),
    "IPython",  # which PIL.ImageShow loads
)


@pytest.mark.parametrize(
    "module", ["graph_train.launch.train", "graph_train.prediction.predict", "graph_train.validation.evaluate"]
)
def test_start_does_not_import_packages_needed_later(module: str) -> None:
    code = f"import sys, {module}\nprint(*sorted(set({DEFERRED!r}) & set(sys.modules)))"
    done = run_python("-c", code, check=True)
    assert done.stdout.split() == []


def test_index_imports_neither_oneflow_nor_dali() -> None:
    code = "import sys, pipelines.data.index\nprint(*sorted({'oneflow', 'nvidia.dali', 'scipy'} & set(sys.modules)))"
    done = run_python("-c", code, check=True)
    assert done.stdout.split() == []
