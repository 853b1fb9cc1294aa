"""How fast stage one is: against DIFT, against a plain loop with hooks, and against what the machine can multiply.

``python tests/benchmarks/extract.py --model FOLDER --dift CHECKOUT`` builds the model with random weights (configs are
enough): a diffusion model, or a network of transformers, which has no DIFT and no peak beside it. In a round every
contestant does one image, each in a process of its own (``contestants.py``), while the others wait; ratios are medians
of the rounds' ratios. Then the job itself runs over pictures on a disk, for a few images and for many: it tells the
shares of its wall time and its peak memory. Without ``--dift`` (a checkout of github.com/Tsingularity/dift) that ratio
is null. On a busy machine look at the ratios of processor seconds.

Progress goes to stderr; the last line of stdout is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from made_index import pictures_index
from planning import image_tflop
from xd3d.stages.extract.backbones import with_default_taps
from xd3d.stages.extract.models import settings_model
from xd3d.stages.extract.precision import resolve_dtype
from xd3d.stages.extract.settings import ExtractSettings

CONTESTANTS = Path(__file__).parent / "contestants.py"
JOB = """
import json, sys
from pathlib import Path
from contestants import answer, peak_bytes
from xd3d.stages.datasets.index import FrameIndex
from xd3d.stages.extract.job import extract_features
from xd3d.stages.extract.settings import ExtractSettings
settings = ExtractSettings.model_validate_json(sys.argv[1])
folder = Path(sys.argv[2])
done = extract_features(FrameIndex.load(folder / "index"), settings, folder / "cache")
answer({"images_per_second": done.images_per_second, "shares": dict(done.shares), "rss": peak_bytes()})
"""


def main() -> None:
    given = parse()
    settings = ExtractSettings(
        model=given.model,
        weights=given.weights,
        image_size=(given.size[0], given.size[1]),
        dtype=given.dtype,
        device="cpu",
        shard_mb=given.shard_mb,
    )
    model = settings_model(settings)
    settings = with_default_taps(model, settings).model_copy(update={"dtype": resolve_dtype(settings, model)})
    diffusion = model.kind == "diffusers"
    names = ["ours", *(["hooks"] if given.hooks else []), *(["dift"] if given.dift else [])]
    facts: dict[str, Any] = {
        "model": Path(given.model).name,
        "size": list(settings.image_size),
        "taps": list(settings.map_taps),
        "dtype": settings.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": given.rounds,
        "images": given.images,
        **(image_tflop(model, settings) if diffusion else {}),
    }
    facts |= race(names, settings, given.rounds, str(given.dift))
    if not given.dift:
        facts |= {"ratio_to_dift": None, "dift_missing": "no checkout of github.com/Tsingularity/dift: give --dift DIR"}
    facts |= rates(facts) if diffusion else {}
    facts |= job_facts(settings, given.images)
    print(json.dumps(facts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-street", help="a name or a folder in diffusers' layout")
    parser.add_argument("--weights", choices=("pretrained", "random"), default="random")
    parser.add_argument("--dift", type=Path, help="a checkout of github.com/Tsingularity/dift")
    parser.add_argument("--no-hooks", dest="hooks", action="store_false", help="leave the plain loop out: less memory")
    parser.add_argument("--size", type=int, nargs=2, default=(448, 800), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--dtype", default="auto", help="of ours; the peers run in float32, as their users do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="of the long job; the short one does a quarter")
    parser.add_argument("--shard-mb", type=int, default=20, help="small, so that the short job fills a shard too")
    return parser.parse_args()


class Contestant:
    """A process that does an image when it is told."""

    def __init__(self, name: str, settings: ExtractSettings, extra: str) -> None:
        self.name = name
        command = [sys.executable, str(CONTESTANTS), name, settings.model_dump_json(), extra]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def image(self) -> dict[str, Any]:
        """Do one image; returns its seconds, the most memory ever held and, of ours, the peaks just after it."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        done = self._answer()
        tell(f"{self.name}: {done['seconds']:.2f} s, {done['cpu_seconds']:.2f} s of processors")
        return done

    def end(self) -> None:
        """Let the process go."""
        self._process.communicate(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}")
        return json.loads(line)


def race(names: list[str], settings: ExtractSettings, rounds: int, dift: str) -> dict[str, Any]:
    """Let the contestants take turns; the first image of each warms it up and does not count."""
    runners = []
    for name in names:
        tell(f"loading {name}")
        runners.append(Contestant(name, settings, dift))
        runners[-1].image()
    turns = [{runner.name: runner.image() for runner in runners} for _ in range(rounds)]
    for runner in runners:
        runner.end()
    ours = [turn["ours"] for turn in turns]
    facts: dict[str, Any] = {
        "gemm_gflops": {dtype: median(image["peaks"][dtype] for image in ours) for dtype in ours[0]["peaks"]}
    }
    for kind in ("seconds", "cpu_seconds"):
        facts[kind] = {name: median(turn[name][kind] for turn in turns) for name in names}
        for peer in names[1:]:
            suffix = "" if kind == "seconds" else "_cpu"
            facts[f"ratio_to_{peer}{suffix}"] = median(turn[peer][kind] / turn["ours"][kind] for turn in turns)
    facts["images_per_second"] = {name: 1 / seconds for name, seconds in facts["seconds"].items()}
    facts["peak_bytes"] = {name: max(turn[name]["rss"] for turn in turns) for name in names}
    return facts


def rates(facts: dict[str, Any]) -> dict[str, float]:
    """What ours reaches of the measured peak of its own precision, and of bfloat16's."""
    achieved = 1e3 * facts["tflop"] / facts["seconds"]["ours"]
    peaks = facts["gemm_gflops"]
    own = peaks.get(facts["dtype"], float("nan"))
    return {
        "achieved_gflops": achieved,
        "ratio_to_peak": achieved / own,
        "ratio_to_bfloat16_peak": achieved / peaks["bfloat16"],
    }


def job_facts(settings: ExtractSettings, images: int) -> dict[str, Any]:
    """Run the job in processes of its own, over pictures of twice the size that the model sees.

    The long run tells the shares, both together how memory grows.
    """
    runs, (height, width) = [], settings.image_size
    for count in (max(1, images // 4), images):
        tell(f"the job over {count} images")
        with tempfile.TemporaryDirectory() as folder:
            pictures_index(Path(folder), count, (2 * height, 2 * width)).save(Path(folder) / "index")
            command = [sys.executable, "-c", JOB, settings.model_dump_json(), folder]
            done = subprocess.run(command, cwd=CONTESTANTS.parent, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    few, many = runs
    return {
        "job_images_per_second": many["images_per_second"],
        **{f"share_{activity}": share for activity, share in many["shares"].items()},
        "job_peak_bytes": [few["rss"], many["rss"]],
        "ratio_memory": many["rss"] / few["rss"],
    }


def tell(text: str) -> None:
    """Say on stderr how far the benchmark is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
