"""One picture of each domain of the generalisation benchmark, in a grid with the domains' names.

Run ``python tests/benchmarks/shifts.py``; it draws ``docs/images/shifts.jpg`` in a minute. The pictures are those of
the root that ``xd3d ablate`` synthesises.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from xd3d.pipeline.ablation.plan import STREETS
from xd3d.stages.synthesize.nuscenes_writer import SceneJob, write_scene
from xd3d.stages.synthesize.plan import BENCHMARK_GROUPS, ScenePlan, plan_scenes
from xd3d.stages.synthesize.synthesize import make_folders

CAMERA = "CAM_FRONT"
COLUMNS = 4
SCENE, KEYFRAME = 1, 2  # of each domain's test scenes, and of the scene
SIZE = (330, 186)  # of a picture in the grid
NAMES = {"streets": "source"} | {domain: name for name, domain in STREETS.domains.items()}


def picture(plan: ScenePlan) -> Image.Image:
    """The picture of a keyframe of a scene, which is driven as a whole: its length decides what its street is like."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_folders(out, (CAMERA,))
        write_scene(SceneJob(out=out, plan=plan, seed=0, cameras=(CAMERA,), image_size=(800, 450)))
        with Image.open(sorted((out / "samples" / CAMERA).iterdir())[KEYFRAME]) as image:
            return image.resize(SIZE, Image.Resampling.LANCZOS)


def titled(image: Image.Image, title: str) -> Image.Image:
    """The picture with its title on a bar in the upper left corner."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    box = draw.textbbox((7, 4), title, font=font)
    draw.rectangle((0, 0, box[2] + 7, box[3] + 5), fill=(20, 20, 20))
    draw.text((7, 4), title, font=font, fill=(255, 255, 255))
    return image


def main() -> None:
    """Draw the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[2] / "docs" / "images" / "shifts.jpg"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    plans = plan_scenes(STREETS.frames, BENCHMARK_GROUPS)
    cells = []
    for domain, name in NAMES.items():
        scenes = [plan for plan in plans if (plan.group.domain, plan.group.split) == (domain, "val")]
        note = ", for choices" if name in STREETS.development else ""
        cells.append(np.asarray(titled(picture(scenes[SCENE]), name + note)))
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    rows[-1] += [np.full_like(cells[0], 255)] * (COLUMNS - len(rows[-1]))
    Image.fromarray(np.vstack([np.hstack(row) for row in rows])).save(out, quality=82)


if __name__ == "__main__":
    main()
