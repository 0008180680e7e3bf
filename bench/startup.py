"""Seconds of `distill --help` as a whole process, against a Python that does nothing. Bar: 0.5 s.

python bench/startup.py, in the environment where the project is installed
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
BAR = 0.5
BARE = [sys.executable, "-c", "pass"]
STARTS = {
    "distill --help": ["--help"],
    "distill upp (a verb that there is not)": ["upp"],
    "completion of `distill train pd`": [],
}
COMPLETING = {"_DISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "distill train pd", "COMP_CWORD": "2"}


def main() -> None:
    script = Path(sys.executable).with_name("distill")
    for name, words in STARTS.items():
        environment = os.environ if words else {**os.environ, **COMPLETING}
        first = timed([str(script), *words], environment)
        rounds = [(timed([str(script), *words], environment), timed(BARE, os.environ)) for _ in range(ROUNDS)]
        ours, bare = (statistics.median(side) for side in zip(*rounds))
        ratio = statistics.median(a / b for a, b in rounds)
        print(f"{name}: first {first:.2f} s, median {ours:.3f} s, slowest {max(rounds)[0]:.3f} s (bar {BAR} s)")
        print(f"  a Python that does nothing: {bare:.3f} s; median ratio {ratio:.1f}")
    print(f"{ROUNDS} alternating rounds")


def timed(command: list[str], environment: os._Environ | dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
