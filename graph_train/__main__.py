"""`python -m graph_train` is the same as `graph-train`; for launchers that start modules."""

import sys

from graph_train.cli.train import main

sys.exit(main())
