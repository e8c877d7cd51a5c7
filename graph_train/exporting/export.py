"""The work of `graph-export`: export trained weights to safetensors, PyTorch or ONNX."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from graph_train.detection.detector import named_classes, rebuild_network
from graph_train.detection.nms import NmsSettings
from graph_train.engine.precision import load_kernels
from graph_train.engine.schedule import check_image_size
from graph_train.exporting.pytorch.checkpoint import export_pytorch
from graph_train.host.devices import select_device
from graph_train.host.published_weights import located_weights
from graph_train.settings.export_options import ExportOptions
from kernels.host.files import write_atomically
from kernels.host.paths import not_writable, output_file, printable
from models.network import DetectionModel
from models.weights import save_weights

LOG = logging.getLogger("graph_train")


@dataclass(frozen=True)
class ExportedFile:
    """An exported file.

    Attributes:
        difference: for ONNX, the largest difference between onnxruntime's and the network's predictions, see
            `graph_train.exporting.onnx.check.largest_difference`; None for other formats.
    """

    format: str
    path: Path
    difference: float | None = None


@dataclass(frozen=True)
class ExportResult:
    """The files written by `graph-export`."""

    files: tuple[ExportedFile, ...]


def export_weights(options: ExportOptions) -> ExportResult:
    """Run `graph-export`.

    Raises:
        ValueError, OSError: a setting or a file is invalid, or a format does not support a layer.
        RuntimeError: onnxruntime's results differ from the network's; the ONNX file is not written.
    """
    target = _output(options)
    device = select_device(options.device)
    load_kernels(options.kernels, device)  # type: ignore[arg-type]
    given = dict.fromkeys(map(Path, options.weights))
    sources = {weights: located_weights(weights, allow_download=options.allow_download) for weights in given}
    _check_names(target, sources, options)
    files = [file for weights in sources for file in _export_all(weights, sources[weights], target, device, options)]
    return ExportResult(tuple(files))


def _check_names(target: Path | None, sources: Iterable[Path], options: ExportOptions) -> None:
    """Reject weights whose exported files would have the same names, such as `best.pt` and `best.safetensors`.

    Raises:
        ValueError: there are such weights, or a file would be in a folder that cannot be written.
    """
    taken: dict[Path, Path] = {}
    for weights in sources:
        if target is None and (reason := not_writable(weights.parent)):
            raise ValueError(f"{weights}: its folder is not writable ({reason}); give a file elsewhere with --output")
        for name in dict.fromkeys(options.include):
            file = _target(weights, name, target)
            if (other := taken.setdefault(file, weights)) != weights:
                raise ValueError(f"--weights {other} {weights}: both would be exported to {file}; rename one")


def _target(weights: Path, name: str, output: Path | None) -> Path:
    # The default must not overwrite existing weights, such as YOLOv5's best.pt or the input itself.
    weights = weights if weights.name else Path(os.path.abspath(weights))
    if not weights.name:
        raise ValueError(f"--weights {weights}: not a weight file")
    return output or weights.with_name(f"{weights.stem}.onnx" if name == "onnx" else f"{weights.stem}.export.{name}")


def _export_all(
    weights: Path, source: Path, output: Path | None, device: str, options: ExportOptions
) -> list[ExportedFile]:
    """Export one set of weights, read from `source`, to all formats."""
    files = []
    network = rebuild_network(source, part=options.part)  # type: ignore[arg-type]
    if options.data:
        network.names = list(named_classes(options.data, network.num_classes))
    # ONNX last, because it fuses BatchNorm in place.
    for name in sorted(dict.fromkeys(options.include), key=lambda name: name == "onnx"):
        path = _target(weights, name, output)
        if name == "onnx":
            files.append(_export_onnx(network.to(device), path, options))
        else:
            if name == "pt":
                export_pytorch(network, path, half=options.half)
            else:
                save_weights(network, path)
            files.append(ExportedFile(name, path))
        LOG.info("Wrote %s", printable(path))
    return files


def _output(options: ExportOptions) -> Path | None:
    """Return the path of `--output`; reject one that is not writable, or is the input."""
    if not options.output:
        return None
    path = output_file("--output", options.output)
    if os.path.realpath(path) in map(os.path.realpath, options.weights):
        text = f"--output {options.output}: would overwrite --weights; give another name"
        raise ValueError(text)
    return path


def _export_onnx(network: DetectionModel, path: Path, options: ExportOptions) -> ExportedFile:
    """Build, verify and write an ONNX file."""
    # Optional dependencies.
    import onnxruntime

    from graph_train.exporting.onnx.check import TOLERANCE, check_onnx
    from graph_train.exporting.onnx.network import OnnxSettings, build_onnx

    network.eval().fuse()
    settings = OnnxSettings(
        batch_size=options.batch_size,
        image_hw=_image_hw(options, network.spec.coarsest_stride),
        dynamic=options.dynamic,
        opset=options.opset,
        suppression=_suppression(options),
    )
    model = build_onnx(network, settings)
    difference = check_onnx(model, network, settings, graph=options.graph)
    shapes = ", ".join(f"{value.name} {_shape(value)}" for value in (*model.graph.input, *model.graph.output))
    LOG.info("ONNX opset %d, %d nodes: %s", options.opset, len(model.graph.node), shapes)
    LOG.info(
        "Verified with onnxruntime %s: largest difference %.1e (tolerance %.0e)",
        onnxruntime.__version__,
        difference,
        TOLERANCE,
    )
    write_atomically(path, model.SerializeToString())
    return ExportedFile("onnx", path, difference)


def _suppression(options: ExportOptions) -> NmsSettings | None:
    if not options.nms:
        return None
    return NmsSettings(options.conf_thres, options.iou_thres, agnostic=options.agnostic_nms, max_det=options.max_det)


def _image_hw(options: ExportOptions, stride: int) -> tuple[int, int]:
    height, width = (check_image_size(side, stride) for side in (options.imgsz[0], options.imgsz[-1]))
    if (height, width) != (options.imgsz[0], options.imgsz[-1]):
        LOG.info("--imgsz must be a multiple of the stride %d; using %d x %d", stride, height, width)
    return height, width


def _shape(value: object) -> str:
    sides = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return "(" + ", ".join(str(side.dim_param or side.dim_value) for side in sides) + ")"
