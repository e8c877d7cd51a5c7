"""`graph-train` that computes in bfloat16 for `--amp` also on a CPU that is no faster in it, where it would compute in
float32. For `graph-bench accuracy`, to which the rounding counts and not the time.
"""

import sys

from graph_train.cli.train import main
from graph_train.engine import precision

if __name__ == "__main__":
    precision.multiplies_bfloat16_faster = lambda: True
    sys.exit(main())
