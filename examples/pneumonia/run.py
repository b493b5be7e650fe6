"""Train, evaluate and explain: ``python examples/pneumonia/run.py``, see ``--help``."""

import sys

try:
    from pneumonia.cli import main
except ModuleNotFoundError as error:
    print(f"run.py: the package {error.name} is missing; run pip install -e '.[pneumonia]'", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
