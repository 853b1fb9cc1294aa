"""The recipes of docs/cluster.md stay true, as far as they run without Slurm."""

import re
import subprocess
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def no_jobs(monkeypatch):
    """Let the recipe ask for jobs without a queue to put them in; the requests."""
    from dask_jobqueue import SLURMCluster

    asked = []
    monkeypatch.setattr(SLURMCluster, "scale", lambda _, jobs: asked.append(jobs))
    return asked


def test_the_slurm_recipe_asks_for_a_gpu_and_one_task_a_worker(no_jobs, capsys):
    (recipe,) = blocks("python")
    names = {}
    exec(compile(recipe, "docs/cluster.md", "exec"), names)
    with names["cluster"] as cluster:
        script = cluster.job_script()
        assert no_jobs == [8]
        assert capsys.readouterr().out.strip() == cluster.scheduler_address
    for line in ("#SBATCH --cpus-per-task=8", "#SBATCH -t 12:00:00", "#SBATCH --gpus=1", "export OMP_NUM_THREADS=8"):
        assert line in script.splitlines(), script
    assert "--nthreads 1" in script
    assert "--lifetime 11h45m" in script


def test_the_commands_of_the_page_are_ones_that_xd3d_has():
    import typer
    from xd3d.pipeline.cli import app

    command = typer.main.get_command(app)
    known = {option for option in command.commands["extract-features"].params for option in option.opts}
    used = set(re.findall(r"(--[a-z-]+)", " ".join(re.findall(r"xd3d extract-features (.*)", "".join(blocks("bash"))))))
    assert used
    assert used <= known


def test_the_job_array_is_a_sound_script(tmp_path):
    array = next(block for block in blocks("bash") if block.startswith("#!"))
    (tmp_path / "job.sh").write_text(array)
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0
