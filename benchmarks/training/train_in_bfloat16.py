"""`graph-train` whose `--amp` always uses bfloat16 on a CPU, for `graph-bench accuracy`.

The command itself uses float32 on CPUs without fast bfloat16.
"""

import sys

from graph_train.cli.train import main
from graph_train.engine import precision

if __name__ == "__main__":
    precision.multiplies_bfloat16_faster = lambda: True
    sys.exit(main())
