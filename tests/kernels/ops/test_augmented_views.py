"""Views of test-time augmentation against NumPy in float64, and joined predictions against the reference."""

import numpy as np
import pytest

from graph_train.detection.augmented_views import back_to_image
from kernels.ops.augmented_views.function import ViewRows, augmented_view, join_views
from kernels.runtime import flow
from tests.gpu.views import interpolation
from tests.kernels.ops.activations import assert_same_bits, check_thread_orders, in_graph
from tests.kernels.ops.launches import launches_of

BORDER = 0.447


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def exact_view(
    images: np.ndarray, scaled: tuple[int, int], size: tuple[int, int], mirrored: bool, border: float
) -> np.ndarray:
    values = (images[..., ::-1] if mirrored else images) / 255
    rows, columns = (interpolation(side, to) for side, to in zip(images.shape[2:], scaled, strict=True))
    view = np.full((*images.shape[:2], *size), border)
    view[:, :, : scaled[0], : scaled[1]] = rows @ values @ columns.T
    return view


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("shape", "scaled", "size"),
    [
        ((2, 3, 64, 96), (53, 79), (64, 96)),  # as for views
        ((1, 3, 33, 47), (22, 31), (32, 32)),
        ((1, 1, 5, 7), (13, 8), (13, 8)),  # larger, without a border
        ((2, 3, 8, 8), (8, 8), (9, 8)),
        ((1, 2, 1, 1), (3, 4), (5, 6)),
        ((0, 3, 4, 4), (2, 2), (2, 2)),
    ],
)
def test_view_matches_numpy(
    shape: tuple[int, ...], scaled: tuple[int, int], size: tuple[int, int], mirrored: bool
) -> None:
    images = pixels(*shape)

    def run() -> list[np.ndarray]:
        return [augmented_view(flow.tensor(images), scaled, size, mirrored=mirrored, border=BORDER).numpy()]

    (view,) = check_thread_orders(run)
    exact = exact_view(images, scaled, size, mirrored, BORDER)
    np.testing.assert_allclose(view, exact, rtol=0, atol=2e-5)  # positions within 100 px are rounded, too
    if scaled == shape[2:]:
        inside = images[..., ::-1] if mirrored else images
        np.testing.assert_array_equal(view[:, :, : scaled[0]], inside.astype(np.float32) / np.float32(255))


def test_view_matches_oneflow_interpolation() -> None:
    images = pixels(2, 3, 64, 96)
    view = augmented_view(flow.tensor(images), (42, 64), (42, 64), mirrored=False, border=0.0).numpy()
    values = flow.tensor(images.astype(np.float32) / np.float32(255))
    plain = flow.nn.functional.interpolate(values, size=(42, 64), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(view, plain.numpy(), rtol=0, atol=1e-6)


ROWS = (ViewRows(0, 7, 1.0, False), ViewRows(0, 12, 0.83, True), ViewRows(4, 5, 0.67, False))
COUNTS = (9, 12, 9)


def predictions(images: int, classes: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.uniform(0, 90, (images, count, 5 + classes)).astype(np.float32) for count in COUNTS]


@pytest.mark.parametrize("images", [0, 1, 3])
def test_join_views_matches_numpy(images: int) -> None:
    parts = predictions(images)
    (together,) = check_thread_orders(lambda: [join_views([flow.tensor(part) for part in parts], ROWS, 96).numpy()])
    plain = [back_to_image(part, rows, 96) for part, rows in zip(parts, ROWS, strict=True)]
    np.testing.assert_array_equal(together, np.concatenate(plain, axis=1))


def test_view_without_kept_rows() -> None:
    parts = predictions(2)
    rows = (ViewRows(0, 0, 1.0, False), ROWS[1], ViewRows(9, 0, 0.5, True))
    together = join_views([flow.tensor(part) for part in parts], rows, 96).numpy()
    np.testing.assert_array_equal(together, back_to_image(parts[1], rows[1], 96))


def test_graph_matches_eager() -> None:
    images, parts = flow.tensor(pixels(2, 3, 33, 47)), [flow.tensor(part) for part in predictions(2)]
    eager = augmented_view(images, (22, 31), (32, 32), mirrored=True, border=BORDER)
    compiled = in_graph(lambda x: [augmented_view(x, (22, 31), (32, 32), mirrored=True, border=BORDER)], images)
    assert_same_bits(compiled, [eager.numpy()])
    assert_same_bits(
        in_graph(lambda *given: [join_views(given, ROWS, 96)], *parts), [join_views(parts, ROWS, 96).numpy()]
    )


@pytest.mark.skipif("config.getoption('--kernels') != 'emulated-cuda'")
def test_single_launch_per_op() -> None:
    images, parts = flow.tensor(pixels(2, 3, 33, 47)), [flow.tensor(part) for part in predictions(2)]
    view = launches_of(lambda: augmented_view(images, (22, 31), (32, 32), mirrored=True, border=BORDER))
    assert view == {"augmented_view": 1}
    assert launches_of(lambda: join_views(parts, ROWS, 96)) == {"join_views": 1}


def test_invalid_inputs_raise() -> None:
    images = flow.tensor(pixels(1, 3, 8, 8))
    with pytest.raises(RuntimeError, match="graph_train_augmented_view"):
        augmented_view(images.to(flow.float32), (4, 4), (8, 8), mirrored=False, border=BORDER)
    with pytest.raises(RuntimeError, match="graph_train_augmented_view"):
        augmented_view(images, (9, 4), (8, 8), mirrored=False, border=BORDER)
    parts = [flow.tensor(part) for part in predictions(1)]
    with pytest.raises(RuntimeError, match="graph_train_join_views"):
        join_views(parts, (*ROWS[:2], ViewRows(5, 5, 1.0, False)), 96)
    with pytest.raises(RuntimeError, match="graph_train_join_views"):
        join_views([*parts[:2], flow.tensor(predictions(2)[2])], ROWS, 96)
