"""A script of its own mount namespace: a real file system that fills up, grows a page at a time, and turns read-only.

``full_disk.py FOLDER``: the last line is a JSON summary of what the writer said at each turn.
"""

import json
import subprocess
import sys
from pathlib import Path

from conftest import _features, _open, write_shard
from xd3d.cache.verify import cache_info, verify_cache
from xd3d.errors import CacheError, DiskSpaceError

TURNS = 60  #: pages that the disk grows by one at a time
KEYS = [f"image-{row}" for row in range(600)]


def write_pending(path):
    with _open(path, image_keys=KEYS, shard_bytes=20_000) as writer:
        for shard in writer.pending_shards():
            write_shard(writer, shard, _features(shard.rows), {})


def mount(folder, options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def said(kind, path):
    try:
        write_pending(path)
    except kind as error:
        return str(error)
    raise AssertionError("nothing was said")


def main():
    folder = Path(sys.argv[1])
    mount(folder, "size=200k")
    path = folder / "cache"
    full = said(DiskSpaceError, path)
    first = kept = cache_info(path)["done"]
    sound = verify_cache(path)["ok"]
    mount(folder, "remount,ro")
    readonly = said(CacheError, path)
    turns, size = 0, 200
    while True:  # each turn the disk is full at another step of writing
        size += 4
        mount(folder, f"remount,rw,size={size}k")
        try:
            write_pending(path)
            break
        except DiskSpaceError:
            turns += 1
        done = cache_info(path)["done"]
        sound = sound and done >= kept and verify_cache(path)["ok"]
        kept = done
        if turns == TURNS:
            size = 8000
    end = {"done": cache_info(path)["done"], "ok": verify_cache(path)["ok"], "turns": turns}
    sys.stdout.write(json.dumps({"full": full, "kept": first, "sound": sound, "readonly": readonly, **end}) + "\n")


if __name__ == "__main__":
    main()
