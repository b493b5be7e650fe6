"""Train, evaluate and explain: ``python examples/pneumonia/run.py``, see ``--help``."""

import sys

from pneumonia.cli import main

if __name__ == "__main__":
    sys.exit(main())
