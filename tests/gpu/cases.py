"""The cases of each kernel by name; a case runs it and compares it with NumPy."""

import re
from collections.abc import Callable, Mapping
from functools import partial

from kernels.build.nvrtc import cuda_sources
from tests.gpu import activations, batch_norm, boxes, copies, functions, pooling, training_cases, views
from tests.gpu.base import KINDS, Launched
from tests.gpu.devices import Device

Case = Callable[[Device], Launched]


def _of_activations(kind: str) -> dict[str, Case]:
    """Return the cases for each activation type."""
    cases: dict[str, Case] = {
        f"add_n_{kind}": partial(activations.add_n, kind=kind),
        f"add_bias_{kind}_{kind}": partial(activations.add_bias, kind=kind, target=kind),
        f"add_bias_grad_{kind}_{kind}": partial(activations.bias_gradient, kind=kind, target=kind),
        f"pixels_{kind}": partial(activations.pixels, kind=kind, of_bytes=True),
        f"float_pixels_{kind}": partial(activations.pixels, kind=kind, of_bytes=False),
        f"batch_norm_{kind}": partial(batch_norm.forward, kind=kind),
        f"batch_norm_grad_{kind}": partial(batch_norm.backward, kind=kind),
        f"channel_mean_{kind}": partial(batch_norm.channel_mean, kind=kind),
        f"channel_variance_{kind}": partial(batch_norm.channel_variance, kind=kind),
        f"normalise_{kind}": partial(batch_norm.normalise, kind=kind),
        f"normalise_sums_{kind}": partial(batch_norm.normalise_sums, kind=kind),
        f"normalise_grad_{kind}": partial(batch_norm.normalise_grad, kind=kind),
    }
    for unpack, name in ((False, "pack_weights"), (True, "unpack_weights")):
        cases[f"{name}_{kind}"] = partial(activations.pack_weights, kind=kind, unpack=unpack)
    for to_depth, name in ((True, "space_to_depth"), (False, "depth_to_space")):
        cases[f"{name}_{kind}"] = partial(functions.depth, kind=kind, to_depth=to_depth)
    for pad, name in ((True, "zero_pad"), (False, "crop")):
        cases[f"{name}_{kind}"] = partial(functions.border, kind=kind, pad=pad)
    for name in ("attention", "attention_query_grad", "attention_key_grad"):
        cases[f"{name}_{kind}"] = partial(functions.attention, name=name, kind=kind)
    for gradient, suffix in ((False, kind), (True, f"grad_{kind}")):
        cases[f"activate_{suffix}"] = partial(functions.activate, kind=kind, gradient=gradient)
        cases[f"upsample_{suffix}"] = partial(pooling.upsample, kind=kind, gradient=gradient)
        cases[f"max_pool_{suffix}"] = partial(pooling.max_pool, kind=kind, gradient=gradient)
    return cases


def _between_types(kind: str) -> dict[str, Case]:
    """Return the cases between float32 and each 16-bit type."""
    return {
        f"cast_f32_{kind}": partial(activations.cast, source="f32", target=kind),
        f"cast_{kind}_f32": partial(activations.cast, source=kind, target="f32"),
        f"add_bias_{kind}_f32": partial(activations.add_bias, kind=kind, target="f32"),
        f"add_bias_grad_f32_{kind}": partial(activations.bias_gradient, kind="f32", target=kind),
    }


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {
        "fill_f32": activations.fill,
        "bbox_iou": partial(boxes.box_iou, gradient=False),
        "bbox_iou_grad": partial(boxes.box_iou, gradient=True),
        "decode": boxes.decode_maps,
        "suppress": boxes.suppress,
        "augmented_view": views.augmented_view,
        "join_views": views.join_views,
        "flatten": copies.flatten,
        "begin_step": copies.begin_step,
        "detection_loss": training_cases.detection_loss,
        "rebalance_levels": training_cases.rebalance_levels,
        "update_parameters": training_cases.update,
    }
    for unit in copies.UNITS:
        cases[f"concat_{unit}"] = partial(copies.concat, unit=unit, split=False)
        cases[f"split_{unit}"] = partial(copies.concat, unit=unit, split=True)
    for kind in KINDS:
        cases |= _of_activations(kind)
    for kind in KINDS[1:]:
        cases |= _between_types(kind)
    return cases


CASES: Mapping[str, Case] = _cases()


def _large_cases() -> dict[str, Case]:
    """Return cases with the sizes of a yolov5s training: 16 images of 640 px, 80 classes, mostly bfloat16."""
    kind, three_levels = "bf16", ((80, 80), (40, 40), (20, 20))
    with_strides = tuple((*sides, 8 << index) for index, sides in enumerate(three_levels))
    cases: dict[str, Case] = {
        "add_n_bf16": partial(activations.add_n, kind=kind, count=16 * 160 * 160 * 64),
        "pixels_bf16": partial(activations.pixels, kind=kind, of_bytes=True, batch=16, area=640 * 640),
        "detection_loss": partial(
            training_cases.detection_loss, sizes=training_cases.LossSizes(three_levels, 80, 16, 40)
        ),
        "update_parameters": partial(training_cases.update, sizes=(7_000_000, 10_000, 200_000), cases=[(0, "updates")]),
        "decode": partial(boxes.decode_maps, images=16, classes=80, levels=with_strides),
        "suppress": partial(boxes.suppress, images=16, boxes=25200, classes=80, limits=((1, 30000, 300),)),
    }
    for rows, channels in ((8 * 160 * 160, 64), (16 * 40 * 40, 256), (16 * 20 * 20, 512)):
        for name, case in (("batch_norm", batch_norm.forward), ("batch_norm_grad", batch_norm.backward)):
            cases[f"{name}_{kind} {rows}x{channels}"] = partial(case, kind=kind, shape=(rows, channels))
    for gradient, suffix in ((False, kind), (True, f"grad_{kind}")):
        for name, pool, side in (("upsample", pooling.upsample, 40), ("max_pool", pooling.max_pool, 20)):
            cases[f"{name}_{suffix}"] = partial(
                pool, kind=kind, gradient=gradient, shape=(16, side, side), channel_numbers=(256,)
            )
    for name in ("attention", "attention_query_grad", "attention_key_grad"):
        cases[f"{name}_{kind}"] = partial(functions.attention, name=name, kind=kind, shape=(16, 400, 4, 256))
    return {f"{name} (training)": case for name, case in cases.items()}


LARGE_CASES: Mapping[str, Case] = _large_cases()
"""Cases with the sizes of a training, so that times are meaningful and each block has several work items."""
WITHIN_OTHERS = {"add_bias_sums"}
"""Kernels that are also started by the case of another one."""


def kernel_names() -> set[str]:
    """Return the names of all kernels in the sources."""
    names: set[str] = set()
    for source in cuda_sources():
        text = source.read_text(encoding="utf-8")
        names |= set(re.findall(r"GT_(?:BLOCK_)?KERNEL\((\w+), \w+", text))
        for name in re.findall(r"GT_KERNEL_OF_ACTIVATIONS\(\w+, (\w+),", text):
            names |= {f"{name}_{kind}" for kind in KINDS}
    return names
