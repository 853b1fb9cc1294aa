"""The bookkeeping of a cache as large as they get: 204,894 images in shards of twelve, with tiny arrays.

``python tests/benchmarks/bookkeeping.py FOLDER`` writes such a cache to FOLDER (best in memory, or the disk is what is
measured), leaves the last shards out, and times what every command does before its real work (resume, open, info,
quick verify), and the whole of verify. Each runs in a process of its own. The last line is a JSON object: seconds,
seconds of the processor and peak memory of each.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from xd3d.cache.layout import Shard
from xd3d.cache.schema import ImageFeatures, TapSpec
from xd3d.cache.writer import CacheWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from numpy_encoder import write_shard

CAMERAS = 6
SHARD_IMAGES = 12  # of sd21-base at 800 x 448 in shards of 100 MB
LEFT_OUT = 10  # shards that the first run does not come to
TAP = TapSpec(name="up1", channels=1, height=1, width=1, extent=(1.0, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=204_894)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        start, working = time.perf_counter(), time.process_time()
        found = STEPS[given.step](given.folder, given.images)
        seconds = time.perf_counter() - start
        cpu = time.process_time() - working
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak, "found": found}))
        return
    steps = {name: _in_own_process(name, given.folder, given.images) for name in STEPS}
    for name, told in steps.items():
        took = f"{told['seconds']:.2f} s, processor {told['cpu_seconds']:.2f} s"
        print(f"{name:14}{took}, {told['peak_mib']:.0f} MiB: {told['found']}")
    print(json.dumps({"images": given.images, "steps": steps}))


def _in_own_process(step: str, folder: Path, images: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), "--images", str(images), "--step", step]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _open(folder: Path, images: int) -> CacheWriter:
    return CacheWriter.open(
        folder,
        taps=[TAP],
        agents=1,
        image_keys=[f"{row:032x}" for row in range(images)],
        images_per_frame=CAMERAS,
        fingerprint={"model": "none"},
        shard_bytes=SHARD_IMAGES * 24,
    )


def _fill(writer: CacheWriter, shards: Iterable[Shard]) -> None:
    for shard in shards:
        values = np.arange(shard.first, shard.last, dtype=np.float32).reshape(-1, 1, 1, 1)
        geometry = np.zeros((len(values), 1, 5), np.float32)
        features = ImageFeatures(maps={"up1": values}, agents={"up1": values[..., 0]}, geometry=geometry)
        write_shard(writer, shard, features, {})


def _write(folder: Path, images: int) -> int:
    with _open(folder, images) as writer:
        shards = writer.pending_shards()[:-LEFT_OUT]
        _fill(writer, shards)
    return len(shards)


def _resume(folder: Path, images: int) -> int:
    with _open(folder, images) as writer:
        pending = writer.pending_shards()
        _fill(writer, pending)
    return len(pending)


def _read(folder: Path, images: int) -> int:
    from xd3d.cache.reader import FeatureReader

    return int(FeatureReader(folder).read([images - 1]).maps["up1"].size)


def _info(folder: Path, images: int) -> int:
    from xd3d.cache.verify import cache_info

    return int(cache_info(folder)["done"])


def _quick(folder: Path, images: int) -> int:
    from xd3d.cache.verify import verify_cache

    return int(verify_cache(folder, quick=True)["checked"])


def _verify(folder: Path, images: int) -> int:
    from xd3d.cache.verify import verify_cache

    return int(verify_cache(folder)["checked"])


STEPS = {"write": _write, "resume": _resume, "open": _read, "info": _info, "quick verify": _quick, "verify": _verify}

if __name__ == "__main__":
    main()
