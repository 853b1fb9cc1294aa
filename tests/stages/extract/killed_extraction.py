"""A script of its own process: extract a few pictures again and again, each time killed with SIGKILL at another moment.

``killed_extraction.py FOLDER main|workers|stop KILLS SEED``, where FOLDER holds an index and settings. ``main`` kills
the process itself, forked from this one, which has imported everything; ``workers`` kills processes of a cluster while
they hold the cache; ``stop`` ends the main process of a cluster. Each is followed by a resumed run, whose files must
equal those of an unbroken one. The last line is a JSON summary.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import dask
from distributed.utils import get_mp_context
from tqdm import tqdm
from xd3d.cache.layout import CacheLayout
from xd3d.cache.verify import verify_cache
from xd3d.errors import ClusterError
from xd3d.locks import live_owners
from xd3d.pipeline.console import run_command_line
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.extract.dask_cluster import extract_with_workers
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.settings import ExtractSettings

tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked children, and one may die with it

PRELOAD = [
    "distributed",
    "xd3d.stages.extract.dask_workers",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
]


def tree(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "writer.lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def sound(path):
    return not (path / "zarr.json").exists() or verify_cache(path)["ok"]


def extract_in_child(index, settings, path):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        extract_features(index, settings, path)
        os._exit(0)
    return child


def kill_main(index, settings, base, rng, kills):
    """Kill at moments that are spread over a whole run, the loading of the model among them."""
    unbroken = base / "unbroken"
    start = time.monotonic()
    os.waitpid(extract_in_child(index, settings, unbroken), 0)
    whole, seconds = tree(unbroken), time.monotonic() - start
    count = 0
    while count < kills:
        path = base / f"killed-{count}"
        child = extract_in_child(index, settings, path)
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        count += os.WIFSIGNALED(status)
        assert sound(path), f"kill {count}"
        os.waitpid(extract_in_child(index, settings, path), 0)
        assert tree(path) == whole, f"kill {count}: the result differs from an unbroken run"
        shutil.rmtree(path)
    return {"killed": count}


def kill_workers(index, settings, base, rng, kills):
    """Kill whoever holds the cache beside this process, at random moments, until enough have died."""
    os.waitpid(extract_in_child(index, settings, base / "unbroken"), 0)
    whole, killed, given_up = tree(base / "unbroken"), [], 0
    while len(killed) < kills:
        path, over = base / f"killed-{len(killed)}", threading.Event()

        def murder(path=path, over=over):
            while not over.wait(rng.uniform(0.0, 0.5)) and len(killed) < kills:
                others = [int(text.split()[1]) for text in live_owners(path).values()]
                for process in [process for process in others if process != os.getpid()][:1]:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

        killer = threading.Thread(target=murder)
        killer.start()
        try:
            extract_with_workers(index, settings, path, workers=2)
        except ClusterError:  # by chance the workers of one shard died too often
            given_up += 1
        finally:
            over.set()
            killer.join()
        assert sound(path)
        os.waitpid(extract_in_child(index, settings, path), 0)
        assert tree(path) == whole, f"{len(killed)} kills: the result differs from an unbroken run"
    return {"killed": len(killed), "given_up": given_up}


def command_in_child(index, settings, path, said):
    """The command with a worker, in a process group of its own, as a terminal starts it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        run_command_line(lambda: extract_with_workers(index, settings, path, workers=1))
    return child


def stop_commands(index, settings, base, _rng, _kills):
    """Ctrl-C reaches the whole group, the others the main process; say how each ended and what it left."""
    os.waitpid(extract_in_child(index, settings, base / "unbroken"), 0)
    whole, found = tree(base / "unbroken"), {}
    for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGKILL, os.kill)):
        path, said = base / number.name, base / f"{number.name}.txt"
        child = command_in_child(index, settings, path, said)
        while not list(path.glob("done/*.json")):
            time.sleep(0.01)
        send(child, number)
        _, status = os.waitpid(child, 0)
        deadline = time.monotonic() + 30
        while (alive := live_owners(path)) and number == signal.SIGKILL and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [file.name for file in path.rglob("*") if file.suffix in (".partial", ".claim", ".holder")]
        assert sound(path)
        found[number.name] = {
            "code": os.waitstatus_to_exitcode(status),
            "said": said.read_text(),
            "alive": list(alive),
            "left": left,
            "done": len(list(path.glob("done/*.json"))),
        }
        os.waitpid(extract_in_child(index, settings, path), 0)
        assert tree(path) == whole, f"{number.name}: the result differs from an unbroken run"
    return found


def main():
    base, mode, kills, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    CacheLayout.shard_images = staticmethod(lambda _t, _a, images, _f, _b: min(2, images))
    index = FrameIndex.load(base / "index")
    settings = ExtractSettings.model_validate_json((base / "settings.json").read_text())
    if mode == "workers":
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
        get_mp_context().set_forkserver_preload(PRELOAD)
    for name in PRELOAD:
        __import__(name)
    work = {"main": kill_main, "workers": kill_workers, "stop": stop_commands}[mode]
    found = work(index, settings, base / mode, random.Random(seed), kills)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
