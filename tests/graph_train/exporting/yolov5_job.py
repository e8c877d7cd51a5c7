"""Loading of a .pt as YOLOv5 does, and its predictions; runs in the Python of a YOLOv5 checkout.

Arguments: .pt file, .npz with `images` (B, 3, H, W) in [0, 1], .npz to write. The checkout is the working directory.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path.cwd()))


def main(weights: str, images: str, output: str) -> None:
    import torch

    # The checkout's own package `models`, not ours.
    attempt_load = importlib.import_module("models.experimental").attempt_load
    with torch.no_grad():
        unfused = attempt_load(weights, device=torch.device("cpu"), fuse=False)
        model = attempt_load(weights, device=torch.device("cpu"))
        given = torch.from_numpy(np.load(images)["images"])
        plain, fused = (network(given)[0].numpy() for network in (unfused, model))
        augmented = model(given, augment=True)[0].numpy()
    names = [model.names[index] for index in range(len(model.names))]
    np.savez(
        output,
        plain=plain,
        fused=fused,
        augmented=augmented,
        names=names,
        stride=model.stride.numpy(),
        nc=model.nc,
        keys=list(unfused.state_dict()),
        text=str(unfused),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
