"""A reader opened and used in the parent, by threads that go on reading, is used in every kind of child."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import multiprocessing, sys, threading
from contextlib import closing
from pathlib import Path
from xd3d.cache.loader import load_batches
from xd3d.cache.reader import FeatureReader
from xd3d.errors import CacheError

ROWS = [0, 17, 3]

def total(reader, rows):
    return float(reader.read(rows).maps["rgb"].sum())

def loaded(reader, rows):
    with closing(load_batches(reader, [[row] for row in rows])) as batches:
        return sum(float(features.maps["rgb"].sum()) for features in batches)

def keep_reading(reader, stop):
    while not stop.is_set():
        reader.read([5, 11])
"""

POOLS = """
if __name__ == "__main__":
    reader, stop = FeatureReader(Path(sys.argv[1])), threading.Event()
    expected = total(reader, ROWS)
    threads = [threading.Thread(target=keep_reading, args=(reader, stop)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            for work in (total, loaded):
                assert pool.starmap(work, [(reader, ROWS)] * 4) == [expected] * 4, (method, work)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    for _ in range(25):
        child = context.Process(target=lambda: queue.put(total(reader, ROWS)))
        child.start()
        assert queue.get() == expected
        child.join()
    stop.set()
    for thread in threads:
        thread.join()
    print("done")
"""

LOADER_UNDER_WAY = """
if __name__ == "__main__":
    reader = FeatureReader(Path(sys.argv[1]))
    batches = load_batches(reader, [[row % 18] for row in range(60)], threads=2)
    next(batches)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def go_on():
        try:
            for _ in batches:
                pass
        except CacheError as error:
            queue.put(str(error))

    child = context.Process(target=go_on)
    child.start()
    assert "fork" in queue.get()
    child.join()
    assert len(list(batches)) == 59
    print("done")
"""

TORCH = """
import torch
from torch.utils.data import DataLoader

class Rows(torch.utils.data.Dataset):
    def __init__(self, reader):
        self.reader = reader
    def __len__(self):
        return len(self.reader.image_keys)
    def __getitem__(self, row):
        return torch.from_numpy(self.reader.read([row]).maps["up1"][0])

if __name__ == "__main__":
    reader, stop = FeatureReader(Path(sys.argv[1])), threading.Event()
    expected = torch.from_numpy(reader.read(range(18)).maps["up1"])
    thread = threading.Thread(target=keep_reading, args=(reader, stop))
    thread.start()
    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(Rows(reader), batch_size=4, num_workers=2, multiprocessing_context=method)
        for _ in range(2):
            assert torch.equal(torch.cat(list(loader)), expected), method
    stop.set()
    thread.join()
    print("done")
"""


def run(script: str, cache: Path, folder: Path) -> None:
    file = folder / "script.py"
    file.write_text(HEAD + script)
    done = subprocess.run([sys.executable, file, cache], capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout == "done\n", done.stderr[-3000:]


@pytest.mark.timeout(200)
def test_children_of_every_kind_read_while_threads_of_the_parent_do(cache, tmp_path):
    run(POOLS, cache, tmp_path)


@pytest.mark.timeout(200)
def test_a_loader_under_way_is_refused_in_a_forked_child_and_resumes_in_the_parent(cache, tmp_path):
    run(LOADER_UNDER_WAY, cache, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_workers_of_a_torch_data_loader_read(cache, tmp_path):
    run(TORCH, cache, tmp_path)
