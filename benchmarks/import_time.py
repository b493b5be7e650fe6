"""What ``import camlib`` costs over ``import torch``: fresh processes, the median of several.

Run it with ``benchmarks/run import_time``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 9
CODE = "import torch, time; start = time.perf_counter(); import camlib; print(time.perf_counter() - start)"


def main() -> None:
    """Print the median, lowest and highest time in milliseconds."""
    times = [
        1000 * float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True, text=True).stdout)
        for _ in range(ROUNDS)
    ]
    print(
        f"import camlib after import torch: median {statistics.median(times):.1f} ms, "
        f"{min(times):.1f} to {max(times):.1f} ms over {ROUNDS} processes"
    )


if __name__ == "__main__":
    main()
