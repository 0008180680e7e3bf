"""Images/s of the stage `shard`: read by one thread, by a thread for each core, by a process for each core. All write the
same.

    python bench/shard.py [--images 20000] [--side 32] [--size N]    (makes its own JPEGs in a temporary folder)
"""

import argparse
import tempfile
import time
from pathlib import Path


def main() -> None:
    import joblib  # here and below, for each process that reads runs this file's top again

    from diffcore.data import pixels
    from diffcore.data.config import Config
    from diffcore.data.write import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32, help="pixels of a JPEG's side")
    parser.add_argument("--size", type=int, help="to which they are resized")
    options = parser.parse_args()
    cores = joblib.cpu_count()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        make(folder, options.images, options.side)
        sides = {"1 thread": {"workers": 1}, f"{cores} threads": {"workers": cores}}
        sides[f"{cores} processes"] = {"workers": cores, "start": pixels.processes}
        speeds, digests = {}, set()
        for name, readers in sides.items():
            began = time.perf_counter()
            config = Config(f"folder:{folder}", size=options.size)
            digests.add(write(config, Path(scratch) / "out", **readers).digest)
            speeds[name] = options.images / (time.perf_counter() - began)
    assert len(digests) == 1, "the bytes depend on who reads"
    what = f"{options.images} JPEGs of {options.side}x{options.side}" + (
        f", resized to {options.size}" * bool(options.size)
    )
    print(what)
    for name, speed in speeds.items():
        print(f"{name:<12} {speed:7.0f} images/s, {speed / speeds['1 thread']:.2f} times one thread")


def make(folder: Path, count: int, side: int) -> None:
    """Smooth random pictures, a thousand to a folder."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


if __name__ == "__main__":
    main()
