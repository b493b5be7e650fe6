"""Print what ``import camlib``, and its first method, take after ``import torch``: milliseconds in nine processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import torch, time
start = time.perf_counter(); import camlib; imported = time.perf_counter(); camlib.GradCAM; used = time.perf_counter()
print(1000 * (imported - start), 1000 * (used - start))
"""

if __name__ == "__main__":
    command = [sys.executable, "-c", CODE]
    runs = [subprocess.run(command, capture_output=True, check=True, text=True).stdout.split() for _ in range(9)]
    for what, taken in zip(("import camlib", "and camlib.GradCAM"), zip(*runs, strict=True), strict=True):
        times = [float(one) for one in taken]
        print(f"{what}: median {statistics.median(times):.1f}, {min(times):.1f} to {max(times):.1f}")
