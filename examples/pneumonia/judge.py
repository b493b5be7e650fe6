"""Which method should be trusted on this network? ``python examples/pneumonia/judge.py``, see ``--help``."""

import sys

try:
    from pneumonia.judging import main
except ModuleNotFoundError as error:
    print(f"judge.py: the package {error.name} is missing; run pip install -e '.[pneumonia]'", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
