"""What ``import camlib`` costs over ``import torch``, and its first name: fresh processes, the median of several.

Names are loaded when they are first used; the first method loads the core.

Run it with ``benchmarks/run import_time``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 9
CODE = """
import torch, time
start = time.perf_counter(); import camlib; imported = time.perf_counter(); camlib.GradCAM; used = time.perf_counter()
print(imported - start, used - start)
"""


def main() -> None:
    """Print the median, lowest and highest times in milliseconds."""
    runs = [
        subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True, text=True).stdout.split()
        for _ in range(ROUNDS)
    ]
    for what, seconds in zip(("import camlib", "and camlib.GradCAM"), zip(*runs, strict=True), strict=True):
        times = [1000 * float(one) for one in seconds]
        print(
            f"{what} after import torch: median {statistics.median(times):.1f} ms, "
            f"{min(times):.1f} to {max(times):.1f} ms over {ROUNDS} processes"
        )


if __name__ == "__main__":
    main()
