"""Processes of a run that write to its loggers, and what stands in each of them in the end.

    python logger_sessions.py RUN 0-5,2-6 tensorboard wandb

The first process begins after step 0, ends with step 5 and is killed, as is every one before the last. It prints the
numbers and pictures of each logger as JSON. The libraries are imported once: each process is a fork.
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image
from xd3d.stages.train.run_log import RunLog
from xd3d.stages.train.wandb_files import read_history


def session(run, loggers, begin, end, *, killed):
    """Write steps with a picture at every second; what is left a second before the kill may reach no file."""
    with RunLog(run, step=begin, loggers=loggers) as records:
        for step in range(begin + 1, end + 1):
            records.write({"step": step, "loss": 0.5 * step, "lr": 0.25})
            if step % 2 == 0:
                picture = np.full((4, 8, 3), 10 * step, np.uint8)
                validation = {"miou": {"3d": 0.125 * step, "xm": None}, "iou": {"car (parked)": {"3d": 0.5}}}
                records.write({"step": step, "validation": validation}, {"frames/1 CAM": picture})
                records.flush()
                time.sleep(2 * killed)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)


def settle(run):
    """Wait for W&B's own process, which outlives a kill and writes once a second what it still holds."""
    found, before = None, ()
    while found != before:
        before, found = found, sorted((path.name, path.stat().st_size) for path in run.glob("wandb/*/*.wandb"))
        time.sleep(1.5)


def tensorboard_history(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    numbers = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return numbers, {name: [event.step for event in events.Images(name)] for name in events.Tags()["images"]}


def wandb_history(run):
    identity = json.loads((run / "wandb.json").read_text())["id"]
    numbers, pictures = {}, {}
    for path in sorted((run / "wandb").glob(f"offline-run-*/run-{identity}.wandb")):
        for row in read_history(path):
            step = int(row.pop("step"))
            for name, value in row.items():
                if name == "frames/1 CAM/path":
                    pictures.setdefault("frames/1 CAM", []).append(step)
                elif not name.startswith(("_", "frames/")):
                    numbers.setdefault(name, []).append((step, json.loads(value)))
    return numbers, pictures


def mlflow_history(run):
    from mlflow import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run}/mlflow.db")
    identity = json.loads((run / "mlflow.json").read_text())["id"]
    found = client.get_run(identity)
    assert found.info.status == "FINISHED"
    numbers = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(identity, name)]
        for name in found.data.metrics
    }
    files = [Path(file.path).name for file in client.list_artifacts(identity, "images")]
    steps = [int(name.split("+")[2]) for name in files if name.endswith(".png")]
    return numbers, {"frames/1 CAM": sorted(steps)}


def trackio_history(run):
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run / "trackio.json").read_text())["id"]
    numbers, pictures = {}, {}
    for entry in SQLiteStorage.get_logs("xd3d", name):
        for key, value in entry.items():
            if isinstance(value, dict):
                pictures.setdefault(key, []).append(entry["step"])
                with Image.open(Path(os.environ["TRACKIO_DIR"]) / "media" / value["file_path"]) as picture:
                    assert (np.array(picture)[..., :3] == 10 * entry["step"]).all()
            elif key not in ("step", "timestamp"):
                numbers.setdefault(key, []).append((entry["step"], value))
    return numbers, pictures


HISTORIES = {
    "tensorboard": tensorboard_history,
    "wandb": wandb_history,
    "mlflow": mlflow_history,
    "trackio": trackio_history,
}


def main():
    run, plan, loggers = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
    for name in loggers:
        import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    for number, part in enumerate(plan):
        begin, end = map(int, part.split("-"))
        killed = number + 1 < len(plan)
        child = os.fork()
        if not child:
            session(run, loggers, begin, end, killed=killed)
            sys.stdout.flush()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-signal.SIGKILL if killed else 0)
        if killed:
            settle(run)
    print(json.dumps({name: HISTORIES[name](run) for name in loggers}))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
