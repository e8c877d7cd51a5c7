"""Parity of augmentation: random view, surviving boxes, letterbox, mosaic, colour, flips, mixup, polygons."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.augmentation import boxes, geometry, letterbox, mosaic, random_samples
from pipelines.pixels import colour
from tests.parity.harness import Mode, Report, Subject


def _split(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _check_views(z: Any, report: Report) -> None:
    order = [str(name) for name in z["rp_draw_order"]]
    for name in (str(n) for n in z["rp_names"]):
        case = {key.removeprefix(f"rp/{name}/"): z[key] for key in z if key.startswith(f"rp/{name}/")}
        params = json.loads(str(case["params_json"]))
        height, width = params["image_hw"]
        border_y, border_x = params["border"]
        output_wh = (width + 2 * border_x, height + 2 * border_y)
        transform = geometry.RandomTransform(**dict(zip(order, case["draws"].tolist(), strict=True)))
        matrix = geometry.view_matrix(transform, canvas_wh=(width, height))
        report.close(f"rp/{name}/M", matrix, case["M"], atol=1e-9)
        report.exact(f"rp/{name}/out_hw", output_wh[::-1], case["out_hw"])
        warped = output_wh != (width, height) or not np.array_equal(matrix, np.eye(3))
        report.exact(f"rp/{name}/warped", warped, case["warped"])
        polygons = _split(case["segments_xy"], case["segment_lengths"]) if "segments_xy" in case else []
        targets = case["targets_in"]
        after, keep = geometry.map_labels(matrix, targets[:, 1:], polygons, scale=transform.scale, output_wh=output_wh)
        report.close(f"rp/{name}/boxes", after, case["boxes_warped"], atol=1e-3)
        report.exact(f"rp/{name}/keep", keep, case["keep"])
        out = np.concatenate((targets[keep, :1], after[keep]), axis=1)
        report.close(f"rp/{name}/targets_out", out, case["targets_out"], atol=1e-3)


def _check_survivors(z: Any, report: Report) -> None:
    for key in (k for k in z if k.startswith("bc_") and not k.startswith("bc_box")):
        found = {m[1]: float(m[2]) for m in re.finditer(r"(wh|ar|area)([0-9.]+)", key)}
        named = {"wh": "min_side_px", "ar": "max_aspect", "area": "min_area_share"}
        settings = {named[short]: value for short, value in found.items()}
        report.exact(key, boxes.surviving_boxes(z["bc_box1"], z["bc_box2"], **settings), z[key])


def _check_letterbox(z: Any, report: Report) -> None:
    actual = []
    for h, w, new_h, new_w, auto, stretch, scale_up, stride in z["lb_in_h_w_newh_neww_auto_scaleFill_scaleup_stride"]:
        fit = letterbox.letterbox(
            (int(h), int(w)),
            (int(new_h), int(new_w)),
            minimum_border=bool(auto),
            stretch=bool(stretch),
            enlarge=bool(scale_up),
            stride=int(stride),
        )
        left, top, right, bottom = fit.content_xyxy
        actual.append((*fit.output_hw, *fit.ratio_wh, *fit.pad_wh, top, left, bottom, right))
    expected, got = z["lb_out_h_w_ratiow_ratioh_padw_padh_y1_x1_y2_x2"], np.array(actual)
    whole = (0, 1, 6, 7, 8, 9)
    report.exact("lb sizes and content", got[:, whole], expected[:, whole])
    report.close("lb ratio and pad", got[:, 2:6], expected[:, 2:6], atol=1e-12)
    picture = z["lb_exact_in"]
    fit = letterbox.letterbox(picture.shape[:2], z["lb_exact_out_64"].shape[:2])
    canvas = np.full((*fit.output_hw, 3), letterbox.BORDER_GREY, np.uint8)
    left, top, right, bottom = fit.content_xyxy
    canvas[top:bottom, left:right] = picture
    report.exact("lb_exact", canvas, z["lb_exact_out_64"])
    from_hw, to_hw = ((int(h), int(w)) for h, w in (z["sb_img1_shape"], z["sb_img0_shape"]))
    back = letterbox.unletterbox_boxes(z["sb_boxes"], from_hw=from_hw, to_hw=to_hw)
    report.close("sb_out", back, z["sb_out"], atol=1e-3)
    ratio, _, *pad = (float(v) for v in z["sb_ratio_pad"])
    back = letterbox.unletterbox_boxes(z["sb_boxes"], from_hw=from_hw, to_hw=to_hw, ratio_pad=(ratio, (pad[0], pad[1])))
    report.close("sb_out_ratio_pad", back, z["sb_out_ratio_pad"], atol=1e-3)


def _mosaic_cases(z: Any) -> Iterator[tuple[list[mosaic.Tile], list[np.ndarray]]]:
    parts = iter(_split(z["mo_labels_in"], z["mo_labels_in_count"].ravel()))
    for centre, tile_hw in zip(z["mo_centers_xc_yc"], z["mo_tile_hw"], strict=True):
        sizes = [(int(w), int(h)) for h, w in tile_hw]
        tiles = mosaic.mosaic4(sizes, centre_xy=(int(centre[0]), int(centre[1])), image_px=int(z["mo_img_size"]))
        yield tiles, [next(parts) for _ in tiles]


def source_rectangle(tile: mosaic.Tile) -> mosaic.Rectangle:
    """Return the part of the scaled image that is on the canvas: x1, y1, x2, y2 in its px."""
    (x, y), (x1, y1, x2, y2) = tile.offset_xy, tile.rectangle
    return x1 - x, y1 - y, x2 - x, y2 - y


def _check_mosaic(z: Any, report: Report) -> None:
    side, cases = 2 * int(z["mo_img_size"]), list(_mosaic_cases(z))
    report.exact("mo_dst", [[t.rectangle for t in tiles] for tiles, _ in cases], z["mo_dst_x1y1x2y2"])
    report.exact("mo_src", [[source_rectangle(t) for t in tiles] for tiles, _ in cases], z["mo_src_x1y1x2y2"])
    report.exact("mo_pad", [[t.offset_xy for t in tiles] for tiles, _ in cases], z["mo_padw_padh"])
    labels = [random_samples.canvas_labels(tiles, rows, canvas_wh=(side, side)) for tiles, rows in cases]
    report.exact("mo_labels_out_count", [len(rows) for rows in labels], z["mo_labels_out_count"])
    report.close("mo_labels_out", np.concatenate(labels), z["mo_labels_out"], atol=1e-4)


def _check_colour(z: Any, report: Report) -> None:
    rgb = z["hsv_bgr_in"][..., ::-1]
    for name in sorted({k.split("_")[0] for k in z if re.match(r"hsv\d+_gains$", k)}):
        tables = colour.hsv_tables(z[f"{name}_gains"])
        report.exact(f"{name}_lut", tables, z[f"{name}_lut"])
        before = z[f"{name}_hsv_before"]
        after = np.stack([tables[c][before[..., c]] for c in range(3)], axis=-1)
        report.exact(f"{name}_hsv_after", after, z[f"{name}_hsv_after"])
        bgr_out = z[f"{name}_bgr_out"]
        report.close(f"{name}_bgr from hsv", colour.hsv_to_rgb(after)[..., ::-1], bgr_out, atol=3)
        ours = colour.apply_tables(rgb, colour.hsv_tables(z[f"{name}_gains"]))
        report.close(f"{name}_bgr", ours[..., ::-1], bgr_out, atol=3)


def _check_flips_and_mixup(z: Any, report: Report) -> None:
    image, labels = z["flip_image"], z["flip_labels"]
    report.exact("flip_ud_image", image[::-1], z["flip_ud_image"])
    report.exact("flip_lr_image", image[:, ::-1], z["flip_lr_image"])
    report.close("flip_ud_labels", random_samples.flip_labels(labels, up_down=True), z["flip_ud_labels"], atol=1e-6)
    report.close("flip_lr_labels", random_samples.flip_labels(labels, left_right=True), z["flip_lr_labels"], atol=1e-6)
    mixed = colour.mix_images(image, z["mixup_image2"], float(z["mixup_ratio"]))
    report.exact("mixup_out", mixed, z["mixup_out"])
    both = np.concatenate((labels, z["mixup_labels2"]))
    report.exact("mixup_labels_out", both, z["mixup_labels_out"])


def _check_conversions(z: Any, report: Report) -> None:
    for key in (k for k in z if re.match(r"conv_float\d+_xywhn$", k)):
        kind = key.split("_")[1]
        tolerance = 1e-10 if kind == "float64" else 1e-4
        pattern = re.compile(rf"conv_{kind}_(\w+?)((?:_[a-z]+-?[0-9.]+|_clip)*)$")
        source = z[key]
        pixels = next(z[k] for k in z if k.startswith(f"conv_{kind}_xywhn2xyxy"))
        for name in (k for k in z if k.startswith(f"conv_{kind}_") and k != key):
            found = pattern.match(name)
            assert found is not None, name
            values = {m[1]: float(m[2]) for m in re.finditer(r"_([a-z]+)(-?[0-9.]+)", found[2])}
            got = _converted(found[1], values, source, pixels, z[f"conv_{kind}_xyxy2xywh"])
            report.close(name, got, z[name], atol=tolerance)


def _converted(
    kind: str, values: dict[str, float], source: np.ndarray, pixels: np.ndarray, centre_px: np.ndarray
) -> np.ndarray:
    size = {"width": values.get("w", 1.0), "height": values.get("h", 1.0)}
    if kind == "xywhn2xyxy":
        return boxes.denormalise(source, offset_xy=(values["padw"], values["padh"]), **size)
    if kind == "xyxy2xywhn":
        return boxes.normalise(pixels, clip_margin=values.get("eps"), **size)
    if kind == "clip_boxes":
        return boxes.clip(pixels, **size)
    if kind == "xyxy2xywh":
        return boxes.xyxy_to_cxcywh(pixels)
    assert kind == "xywh2xyxy", kind
    return boxes.cxcywh_to_xyxy(centre_px)


def _check_polygons(z: Any, report: Report) -> None:
    polygons = _split(z["seg_xy"], z["seg_lengths"])
    for key in (k for k in z if k.startswith("seg_resampled_n")):
        count = int(key.removeprefix("seg_resampled_n"))
        report.close(key, [boxes.resample_polygon(p, count) for p in polygons], z[key], atol=1e-9)
    for key in (k for k in z if k.startswith("seg_box_w")):
        found = re.match(r"seg_box_w(\d+)_h(\d+)$", key)
        assert found is not None, key
        got = [boxes.polygon_box(p, width=int(found[1]), height=int(found[2])) for p in polygons]
        report.close(key, got, z[key], atol=1e-9)


def check(path: Path, report: Report, mode: Mode) -> None:
    """Compare all parts of one `augment*.npz`; NumPy code, so there is only one mode."""
    z = report.open(path)
    for part in (
        _check_views,
        _check_survivors,
        _check_letterbox,
        _check_mosaic,
        _check_colour,
        _check_flips_and_mixup,
        _check_conversions,
        _check_polygons,
    ):
        with report.part(part.__name__.removeprefix("_check_")):
            part(z, report)


SUBJECT = Subject(("augment*.npz",), check, modes=("eager",), information=("*_seed", "hsv*_hgain_sgain_vgain"))
