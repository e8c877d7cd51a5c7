"""A `graph_train` job on a disk that takes some seconds per checkpoint."""

import sys
import time
from pathlib import Path
from typing import Any

from graph_train.ranks import team

SECONDS = 4.0


def main() -> int:
    """Train with the flags of `graph-train`."""
    team.join()
    from graph_train.host.run_command import run_command
    from graph_train.launch.train import train
    from graph_train.runs import saving
    from graph_train.settings.train_options import given_flags

    write = saving.save_checkpoint

    def write_slowly(path: Path, *arguments: Any, **flags: Any) -> None:
        time.sleep(SECONDS)
        write(path, *arguments, **flags)

    saving.save_checkpoint = write_slowly

    def command() -> None:
        train(**given_flags(sys.argv[1:]))

    return run_command("graph-train", command, debug=False)


if __name__ == "__main__":
    code = main()
    team.leave(code)
    sys.exit(code)
