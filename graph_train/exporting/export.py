"""Writes trained weights in a form that other programs read."""

import logging
from dataclasses import dataclass
from pathlib import Path

from graph_train.detection.detector import named_classes, rebuild_network
from graph_train.detection.nms import NmsSettings
from graph_train.engine.schedule import check_image_size
from graph_train.exporting.pytorch.checkpoint import export_pytorch
from graph_train.host.devices import select_device
from graph_train.host.published_weights import located_weights
from graph_train.settings.export_options import ExportOptions
from kernels.host.files import write_atomically
from kernels.host.paths import output_file
from kernels.plugin import load_plugin
from models.network import DetectionModel
from models.weights import save_weights

LOG = logging.getLogger("graph_train")


@dataclass(frozen=True)
class ExportedFile:
    """One file that was written; `difference` is the largest one between onnxruntime and our own forward pass, of the
    value above 1 and absolute below, or None for a format that only stores weights."""

    format: str
    path: Path
    difference: float | None = None


@dataclass(frozen=True)
class ExportResult:
    """The files that `graph-export` wrote."""

    files: tuple[ExportedFile, ...]


def export_weights(options: ExportOptions) -> ExportResult:
    """Run a whole `graph-export`.

    Raises:
        ValueError, OSError: a setting or a file that cannot be used, or a block that a format does not know.
        RuntimeError: onnxruntime does not compute what our network computes; the ONNX file is not written then.
    """
    target = _output(options)
    device = select_device(options.device)
    load_plugin(options.kernels, device)  # type: ignore[arg-type]
    weights, files = Path(options.weights), []
    source = located_weights(weights, allow_download=options.allow_download)
    network = rebuild_network(source, part=options.part)  # type: ignore[arg-type]
    if options.data:
        network.names = list(named_classes(options.data, network.num_classes))
    # Folding BatchNorm, as ONNX wants it, changes the network: weights are written first.
    for name in sorted(dict.fromkeys(options.include), key=lambda name: name == "onnx"):
        # Never the name of a file of weights that may lie there: YOLOv5's best.pt, or the input itself.
        own_name = f"{weights.stem}.onnx" if name == "onnx" else f"{weights.stem}.export.{name}"
        path = target or weights.with_name(own_name)
        if name == "onnx":
            files.append(_export_onnx(network.to(device), path, options))
        else:
            if name == "pt":
                export_pytorch(network, path, half=options.half)
            else:
                save_weights(network, path)
            files.append(ExportedFile(name, path))
        LOG.info("Wrote %s", path)
    return ExportResult(tuple(files))


def _output(options: ExportOptions) -> Path | None:
    """Return the file of `--output`; refuse one that cannot be written, or that the weights are in."""
    if not options.output:
        return None
    path = output_file("--output", options.output)
    if path.resolve() == Path(options.weights).resolve():
        text = f"--output {options.output}: that is the file of --weights, which would be lost; give another name"
        raise ValueError(text)
    return path


def _export_onnx(network: DetectionModel, path: Path, options: ExportOptions) -> ExportedFile:
    """Build, check and write an ONNX file."""
    # Extras: imported only here.
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
        "onnxruntime %s against our own forward pass: largest difference %.1e (allowed %.0e)",
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
        LOG.info("--imgsz is raised to %d x %d, multiples of the stride %d", height, width, stride)
    return height, width


def _shape(value: object) -> str:
    sides = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return "(" + ", ".join(str(side.dim_param or side.dim_value) for side in sides) + ")"
