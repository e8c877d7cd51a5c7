"""One rank of a job that searches for the first non-finite tensor; the last rank's labels are not finite."""

from functools import partial

import numpy as np

from graph_train.ranks import team

BATCH = 3
"""An odd batch size, so that the first of two ranks has two rows."""


def main() -> None:
    info = team.join().info  # before anything imports OneFlow
    from graph_train.ranks.placement import Placement
    from graph_train.training.nonfinite import first_bad_tensor
    from models.loss import DetectionLoss
    from models.loss_config import LossConfig
    from pipelines.shard import Shard
    from tests.graph_train.tiny import random_batch, tiny_network

    placement = Placement("cpu", info.rank, info.world)
    network = tiny_network()
    network.synchronise_statistics(True)
    images, labels = random_batch(0, side=64, labels=5, batch=BATCH)
    labels[-1, 0, 1:3] = np.nan
    rows = Shard(info.rank, info.world).rows(BATCH)
    criterion = placement.replicate_module(DetectionLoss(network.head_geometry, LossConfig()))
    place = partial(placement.shard_batch, total=BATCH)
    text = first_bad_tensor(
        placement.replicate_module(network), criterion, images[rows].copy(), labels[rows].copy(), place
    )
    team.current().report_done()
    print(text)


if __name__ == "__main__":
    main()
