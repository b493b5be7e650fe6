"""The tests of other libraries that camlib has a counterpart of, and what becomes of them.

Each test is an adapter in ``tests/peers``, which calls camlib in the test's place.

    python -m benchmarks.peers    # writes peers.json; half a minute
"""

from __future__ import annotations

import datetime
import importlib.metadata
from typing import Any

from benchmarks import results
from tests.peers import CASES, Case


def record(case: Case) -> dict[str, Any]:
    """What became of a test: its verdict, or "fail" with the error."""
    found: dict[str, Any] = {"peer": case.peer, "test": case.test, "verdict": case.verdict}
    if case.why:
        found["why"] = case.why
    try:
        if case.check is not None:
            case.check()
    except Exception as error:  # whatever an adapter finds
        found |= {"verdict": "fail", "why": f"{type(error).__name__}: {error}"}
    return found


def main() -> None:
    """Run all adapters and store their verdicts."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    tests = [record(case) for case in CASES]
    results.save("peers", {"date": today, "versions": versions, "tests": tests})


if __name__ == "__main__":
    main()
