"""A network that contains every block."""

from typing import Any

EVERY_BLOCK: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30], [33, 23, 30, 61]],
    "activation": "nn.LeakyReLU(0.1)",
    "backbone": [
        [-1, 1, "Focus", [8, 3]],  # 0
        [-1, 1, "DWConv", [16, 3, 1]],  # 1
        [-1, 2, "Bottleneck", [16]],  # 2
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],  # 3
        [-1, 1, "nn.MaxPool2d", [2, 1, 0]],  # 4
        [-1, 1, "GhostBottleneck", [16, 3, 2]],  # 5
        [-1, 2, "BottleneckCSP", [16]],  # 6
        [-1, 2, "C3x", [16]],  # 7
        [-1, 1, "SPP", [16, [5, 9, 13]]],  # 8
        [-1, 1, "SPPF", [16, 5]],  # 9
    ],
    "head": [
        [-1, 2, "C3TR", [16, False]],  # 10
        [-1, 1, "C3SPP", [16]],  # 11
        [-1, 2, "C3Ghost", [16]],  # 12
        [-1, 1, "GhostConv", [16, 1, 1]],  # 13
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],  # 14
        [[-1, 4], 1, "Concat", [1]],  # 15
        [-1, 1, "C3", [16, False]],  # 16
        [-1, 1, "Conv", [16, 3, 2, "None", 1, 1, "nn.Hardswish()"]],  # 17
        [[16, 17], 1, "Detect", ["nc", "anchors"]],  # 18
    ],
}
