"""Seconds to the first batch of a streamed data set, images per CPU second and peak memory, from 1 to 100 shards; beside it
webdataset's own loader over the same tars in the same run.

OMP_NUM_THREADS=1 python bench/stream.py        bars: a first batch in seconds; memory within 5 % from 1 to 100 shards
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from diffcore.core import disk
from diffcore.data import feed
from diffcore.data import manifest as manifests
from diffcore.data.config import Config
from diffcore.data.manifest import Manifest
from diffcore.data.write import write

SHARDS = (1, 16, 100)
REPEATS = 3  # the least of so many processes: what malloc keeps differs by a twentieth from one to the next
SIDE = 64
IMAGES = 6000  # more than a shard of 32 MB holds
BATCH, BATCHES = 128, 40


def image(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))


def data(folder: Path, members: str) -> Path:
    """One full shard of images of one kind of member."""
    (folder / "in").mkdir(exist_ok=True)
    for number in range(IMAGES):
        path = folder / "in" / str(number % 10) / f"{number:05d}.bmp"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            image(number).save(path)
    write(Config(f"folder:{folder}/in", members=members), folder / members)
    return folder / members


def many(one: Path, folder: Path, count: int) -> Path:
    """A data set of `count` shards that are links to the first one of another."""
    found = Manifest.read(one)
    folder.mkdir()
    shards = tuple(dataclasses.replace(found.shards[0], name=f"{number:06d}.tar") for number in range(count))
    for shard in shards:
        os.link(one / found.shards[0].name, folder / shard.name)
    content = dataclasses.asdict(found) | {"shards": shards, "images": sum(shard.images for shard in shards)}
    disk.write_json(
        folder / "manifest.json",
        content | {"shards": [dataclasses.asdict(shard) for shard in shards], "digest": manifests.digest(content)},
    )
    return folder


def ours(folder: Path) -> dict[str, float]:
    begun, cpu = time.perf_counter(), time.process_time()
    with feed.StreamFeed(folder, Manifest.read(folder, verify=False), BATCH, 0, False) as stream:
        stream.batch(0)
        first = time.perf_counter() - begun
        for step in range(1, BATCHES):
            stream.batch(step)
        return {"first": first, "rate": BATCH * BATCHES / (time.process_time() - cpu)}


def webdatasets(folder: Path) -> dict[str, float]:
    import webdataset

    warnings.simplefilter("ignore")
    tars = sorted(map(str, folder.glob("*.tar")))
    begun, cpu = time.perf_counter(), time.process_time()
    loader = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False).shuffle(5000)
    samples = iter(loader.decode("rgb8").to_tuple("webp", "cls").batched(BATCH))
    next(samples)
    first = time.perf_counter() - begun
    for _ in range(min(BATCHES, len(tars) * 4000 // BATCH) - 1):
        next(samples)
    return {"first": first, "rate": BATCH * BATCHES / (time.process_time() - cpu)}


def apart(who: str, folder: Path) -> dict[str, float]:
    """In processes of its own, whose peak of memory is only their own: the best of each number."""
    command = [sys.executable, __file__, who, str(folder)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(REPEATS)]
    least = {name: min(run[name] for run in runs) for name in runs[0]}
    return least | {"rate": max(run["rate"] for run in runs)}


def main() -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for members in ("image", "block"):
            one = data(folder, members)
            manifest = Manifest.read(one)
            cpu = time.process_time()
            feed.open_shard(one, manifest, 0)
            opening = f"opened in {time.process_time() - cpu:.3f} CPU s"
            print(f"{members}: {manifest.shards[0].images} images in a shard of 32 MB, {opening}; batches of {BATCH}")
            for count in SHARDS:
                here = many(one, folder / f"{members}-{count}", count)
                rows[members, count] = measured = apart("ours", here)
                line = "  {:>4} shards   first batch {first:6.2f} s   {rate:8.0f} images/CPU s   peak {peak:5.0f} MB"
                print(line.format(count, **measured), flush=True)
                if members == "image" and count > 1:
                    peer = apart("webdatasets", here)
                    print("  webdataset   " + line.format(count, **peer)[15:])
                    print(f"  images per CPU second, ours over webdataset's: {measured['rate'] / peer['rate']:.2f}")
            peaks = [rows[members, count]["peak"] for count in SHARDS]
            print(f"  peak memory, most over least: {max(peaks) / min(peaks):.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measured = {"ours": ours, "webdatasets": webdatasets}[sys.argv[1]](Path(sys.argv[2]))
        print(json.dumps(measured | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
    else:
        main()
