"""Cases of activation functions, rearranged pixels, and attention."""

import math

import numpy as np

from tests.gpu.base import ROUNDING, Launched, blocks, decode, encode, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_ACTIVATION, _REARRANGE = "ops/activation_function/activation_function.h", "ops/rearrange/rearrange.h"
_ATTENTION = "ops/attention/attention.h"
_STEP = 1e-6
"""Step of finite differences in float64."""


def _activated(x: np.ndarray, parameter: float) -> list[np.ndarray]:
    """Return the value of each function."""
    normal = 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))
    return [
        x.clip(0),
        x.clip(0, 6),
        np.where(x > 0, x, parameter * x),
        np.where(x > 0, x, parameter * np.expm1(x.clip(None, 0))),
        x * (x + 3).clip(0, 6) / 6,
        x * np.tanh(np.logaddexp(0, x)),
        x * normal,
        np.exp(-np.logaddexp(0, -x)),
        np.tanh(x),
    ]


def activate(device: Device, kind: str, gradient: bool, count: int = 100_003, parameter: float = 0.125) -> Launched:
    """Apply each activation function, or its derivative, away from kinks."""
    pairs = []
    values = random_numbers(count) * 3
    for kink in (-3, 0, 3, 6):
        values[np.abs(values - kink) < 0.05] += 0.2
    x = encode(values, kind)
    exact = decode(x).astype(np.float64)
    wanted = _activated(exact, parameter)
    if gradient:
        around = (_activated(exact + _STEP, parameter), _activated(exact - _STEP, parameter))
        wanted = [(above - below) / (2 * _STEP) for above, below in zip(*around, strict=True)]
    threads, of_thread = constant(_ACTIVATION, "kActivateThreads"), constant(_ACTIVATION, "kActivatePerThread")
    dy = encode(np.full(count, 2.0), kind)
    name = f"activate_{'grad_' if gradient else ''}{kind}"
    for number, want in enumerate(wanted):
        addresses = device.put(x), device.put(dy) if gradient else None, device.put(np.zeros_like(x))
        args = structure(_ACTIVATION, "ActivateArgs")(*addresses, count, number, parameter)
        start = starter(device, name, blocks(count, threads * of_thread), threads, args)
        pairs.append((decode(device.get(args.out, x)), (2 * want if gradient else want).astype(np.float32)))
    return Launched(tuple(pairs), max(ROUNDING[kind], 3e-6), 1e-6, start, 2 * x.nbytes)


def depth(device: Device, kind: str, to_depth: bool) -> Launched:
    """Move patches of 2 x 2 pixels into channels, or back."""
    rows, columns, channels = 26, 17, 3
    plain = encode(random_numbers(2 * rows, 2 * columns, channels), kind)
    deep = np.concatenate([plain[row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
    given, want = (plain, deep) if to_depth else (deep, plain)
    addresses = device.put(np.ascontiguousarray(given)), device.put(np.zeros_like(want))
    args = structure(_REARRANGE, "DepthArgs")(*addresses, rows, columns, channels)
    threads = constant(_REARRANGE, "kRearrangeThreads")
    name = f"{'space_to_depth' if to_depth else 'depth_to_space'}_{kind}"
    start = starter(device, name, blocks(want.size, threads), threads, args)
    return Launched(((decode(device.get(args.out, want)), decode(want)),), 0, 0, start, 2 * want.nbytes)


def border(device: Device, kind: str, pad: bool) -> Launched:
    """Add a border of zeros to images, or remove the border."""
    left, right, top, bottom = 2, 1, 0, 3
    large = encode(random_numbers(2, 16, 20, 9), kind)
    small = np.ascontiguousarray(large[:, top : 16 - bottom, left : 20 - right])
    given, want = (small, np.zeros_like(large)) if pad else (large, small)
    if pad:
        want[:, top : 16 - bottom, left : 20 - right] = small
    addresses = device.put(given), device.put(np.ones_like(want))
    args = structure(_REARRANGE, "PadArgs")(*addresses, *small.shape, left, top, *large.shape[1:3])
    threads = constant(_REARRANGE, "kRearrangeThreads")
    start = starter(device, f"{'zero_pad' if pad else 'crop'}_{kind}", blocks(want.size, threads), threads, args)
    return Launched(((decode(device.get(args.out, want)), decode(want)),), 0, 0, start, given.nbytes + want.nbytes)


def _attended(x: np.ndarray, dy: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    """Return the inputs and outputs of the kernels, for x (images, tokens, 3 C) in float64."""
    images, tokens, width = x.shape
    size = width // 3 // heads
    query, key, value = x.reshape(images, tokens, 3, heads, size).transpose(2, 0, 3, 1, 4)
    scores = query @ key.swapaxes(2, 3) / math.sqrt(size)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    given = dy.reshape(images, tokens, heads, size).transpose(0, 2, 1, 3)
    d_weights = given @ value.swapaxes(2, 3)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    parts = d_scores @ key / math.sqrt(size), d_scores.swapaxes(2, 3) @ query / math.sqrt(size)
    dx = np.stack((*parts, weights.swapaxes(2, 3) @ given)).transpose(1, 3, 0, 2, 4)
    return {
        "y": (weights @ value).transpose(0, 2, 1, 3).reshape(dy.shape),
        "weights": weights,
        "d_scores": d_scores,
        "dx": dx.reshape(images, tokens, 3, width // 3),
    }


def attention(device: Device, name: str, kind: str, shape: tuple[int, int, int, int] = (2, 150, 4, 40)) -> Launched:
    """Run one of the three kernels on the results of the previous ones; `shape` is images, tokens, heads, channels."""
    images, tokens, heads, channels = shape
    x = encode(random_numbers(images, tokens, 3 * channels), kind)
    dy = encode(random_numbers(images, tokens, channels, seed=1), kind)
    exact = _attended(decode(x).astype(np.float64), decode(dy).astype(np.float64), heads)
    forward = name == "attention"
    out = np.zeros_like(dy) if forward else np.zeros_like(x)
    weights, d_scores = (exact[key].astype(np.float32) for key in ("weights", "d_scores"))
    args = structure(_ATTENTION, "AttentionArgs")()
    args.shape = structure(_ATTENTION, "AttentionShape")(images, tokens, channels, heads)
    args.x, args.dy, args.out = device.put(x), device.put(dy), device.put(out)
    args.weights = device.put(np.zeros_like(weights) if forward else weights)
    args.d_scores = device.put(d_scores if name == "attention_key_grad" else np.zeros_like(d_scores))
    grid = (images * heads * tokens, 1, 1)
    start = starter(device, f"{name}_{kind}", grid, constant(_ATTENTION, "kAttentionThreads"), args)
    got = decode(device.get(args.out, out))
    if forward:
        pairs = [(got, exact["y"]), (device.get(args.weights, weights), exact["weights"])]
    else:
        own = slice(0, 1) if name == "attention_query_grad" else slice(1, 3)
        pairs = [(got.reshape(exact["dx"].shape)[:, :, own], exact["dx"][:, :, own])]
    if name == "attention_query_grad":
        pairs.append((device.get(args.d_scores, d_scores), exact["d_scores"]))
    return Launched(tuple(pairs), max(ROUNDING[kind], 2e-6), 1e-5, start, x.nbytes + dy.nbytes + 2 * weights.nbytes)
