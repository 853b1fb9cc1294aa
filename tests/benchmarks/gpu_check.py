"""Does everything work on this GPU, and how fast: ten minutes at most, one JSON object, for anyone to run and post.

``make gpu-check``, or ``python tests/benchmarks/gpu_check.py``, renders a small synthetic city and checks on it: both
stages in float32, bfloat16 and float16 against the CPU, spconv against torch, losses from the cache and online, a run
that is killed and goes on, two processes where there are two GPUs; and measures stage one with a model of the size of
Stable Diffusion 2.1 (random weights; ``--model FOLDER`` takes another), steps of stage two, peak memory, copies and
waits. Each check has a process of its own: one that fails, hangs or crashes leaves the others running.

Progress goes to stderr. A table follows and, as the last line of stdout and in ``--out``, the JSON object. The exit
code is 1 where a check failed. Without a GPU it says so and ends with 0; ``--device cpu`` runs all of it there, at a
reduced size.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_bench import FULL, REDUCED, Bench, CheckError, NotHereError, last

#: In the order in which they run, each with the module that has it; the first is always run.
CHECKS = {
    "data": "gpu_bench",
    "environment": "gpu_stage_one",
    "stage_one": "gpu_stage_one",
    "stage_two": "gpu_stage_two",
    "backends": "gpu_backends",
    "cached_online": "gpu_runs",
    "kill_resume": "gpu_runs",
    "stage_one_speed": "gpu_stage_one",
    "stage_two_speed": "gpu_stage_two",
    "traffic": "gpu_stage_two",
    "stage_one_job": "gpu_stage_one",
    "two_processes": "gpu_runs",
}
#: What the table shows of each check beside its status: a label, and the place of the figure.
COMPARED = {"equal": "equal", "first step apart by": "first_difference", "at most": "largest_difference"}
SHOWN = {
    "data": {"frames": "frames"},
    "environment": {"GPUs": "gpus", "driver": "driver", "torch": "torch", "CUDA": "cuda", "spconv": "spconv"},
    "backends": {
        "ms torch float32": "torch float32.milliseconds",
        "spconv float32": "spconv float32.milliseconds",
        "spconv float16": "spconv float16.milliseconds",
    },
    "cached_online": COMPARED,
    "kill_resume": {"killed at step": "killed_at_step", **COMPARED},
    "stage_one_speed": {
        "images/s": "images_per_second",
        "TFLOP/s": "tflops",
        "share of peak": "share_of_peak",
        "peak bytes": "peak_bytes",
    },
    "stage_two_speed": {
        "ms a step, cached": "float32.full.milliseconds",
        "3D only": "float32.3d-only.milliseconds",
        "cached in float16": "float16.full.milliseconds",
        "peak bytes": "float32.full.peak_bytes",
    },
    "traffic": {"copies a step": "copies_a_step", "waits a step": "waits_a_step"},
    "stage_one_job": {"images/s": "images_per_second", "shares": "shares"},
    "two_processes": COMPARED,
}


def main() -> int:
    given = parse()
    if given.worker:
        work(given.worker, Bench.from_json(given.bench), given.out)
        return 0
    if given.device == "cuda" and (reason := no_gpu()):
        print(f"There is no GPU here ({reason}), so nothing was checked. --device cpu runs the checks on the CPU.")
        report({"ok": True, "device": None, "reason": reason, "checks": {}}, given.out)
        return 0
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xd3d-gpu-check-", ignore_cleanup_errors=True) as folder:
        scale = FULL if given.device == "cuda" else REDUCED
        bench = Bench(folder=Path(folder), device=given.device, model=given.model, scale=scale)
        names = [name for name in CHECKS if name == "data" or name in (given.only or CHECKS)]
        checks = {name: check(name, bench, begin + 60 * given.minutes) for name in names}
    failed = [name for name, facts in checks.items() if facts["status"] == "failed"]
    print("\n".join(table(checks)))
    seconds = round(time.monotonic() - begin, 1)
    report({"ok": not failed, "device": given.device, "seconds": seconds, "checks": checks}, given.out)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="default %(default)s")
    parser.add_argument("--model", default="", help="whose speed counts: a folder in diffusers' layout, configs alone")
    parser.add_argument("--only", nargs="+", choices=tuple(CHECKS), metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no check goes on")
    parser.add_argument("--worker", choices=tuple(CHECKS), help=argparse.SUPPRESS)
    parser.add_argument("--bench", help=argparse.SUPPRESS)
    return parser.parse_args()


def no_gpu() -> str:
    """Why PyTorch sees no GPU; "" where it sees one."""
    import torch

    if torch.cuda.is_available():
        return ""
    return "PyTorch sees none" if torch.version.cuda else f"PyTorch {torch.__version__} is a build for the CPU"


def check(name: str, bench: Bench, until: float) -> dict[str, Any]:
    """Run a check in a process of its own until the monotonic time ``until``; its status, seconds and figures."""
    begin = time.monotonic()
    if begin >= until:
        return {"status": "failed", "seconds": 0.0, "reason": "not begun: the time was over"}
    tell(name)
    out = bench.folder / f"{name}.json"
    command = [sys.executable, __file__, "--worker", name, "--bench", bench.to_json(), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=until - begin)
        ended = f"ended with {code(process.returncode)}: {last(errors)}"
    except subprocess.TimeoutExpired:
        ended = f"not done when the time was over, {time.monotonic() - begin:.0f} s after it began"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    facts = json.loads(out.read_text()) if out.exists() else {"status": "failed", "reason": ended}
    facts["seconds"] = round(time.monotonic() - begin, 1)
    tell(f"{name}: {facts['status']} {facts.get('reason', '')}")
    return facts


def code(number: int) -> str:
    """A process's exit code, signals by their name."""
    return signal.Signals(-number).name if number < 0 else f"code {number}"


def work(name: str, bench: Bench, out: Path) -> None:
    """Do a check here and write what came of it to ``out``; the file appears as a whole."""
    try:
        function = getattr(__import__(CHECKS[name]), name)
        facts = {"status": "ok", **function(bench)}
    except NotHereError as missing:
        facts = {"status": "skipped", "reason": str(missing)}
    except CheckError as wrong:
        facts = {"status": "failed", "reason": str(wrong), **wrong.figures}
    except Exception as error:  # whatever it is, the other checks go on
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        facts = {"status": "failed", "reason": f"{type(error).__name__} at {place}: {last(str(error))}"}
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(facts))
    partial.rename(out)


def table(checks: dict[str, dict[str, Any]]) -> list[str]:
    """A line a check: its status, seconds and main figures."""
    width = max(map(len, checks))
    lines = []
    for name, facts in checks.items():
        found = [(label, at(facts, place)) for label, place in SHOWN.get(name, {}).items()]
        cells = [facts["reason"]] if "reason" in facts else []
        cells += [f"{label} {written(value)}" for label, value in found if value is not None]
        lines.append(f"{name:{width}}  {facts['status']:7}  {facts['seconds']:5.0f} s  {'; '.join(cells)}")
    return lines


def at(facts: Any, place: str) -> Any:
    """What stands at a place such as ``float32.full.milliseconds``; None where there is nothing."""
    for part in place.split("."):
        facts = facts.get(part) if isinstance(facts, dict) else None
    return facts


def written(value: Any) -> str:
    """A figure of the table."""
    if isinstance(value, list):
        return ", ".join(map(written, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {written(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(facts: dict[str, Any], out: Path) -> None:
    """Print the JSON object as the last line, and write it to ``out``."""
    out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts), flush=True)


def tell(text: str) -> None:
    """Say on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
