import importlib.util
import json

import pytest
from xd3d.errors import RunError
from xd3d.stages.train.boards import open_boards


@pytest.mark.parametrize(("module", "extra"), [("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_board_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    wanted = {"tensorboard": False, "wandb": False, extra: True}
    with pytest.raises(RunError, match=rf"train\.{extra} is on.*pip install 'xd3d\[{extra}\]'"):
        open_boards(tmp_path, step=0, **wanted)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_works_offline_and_keeps_its_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        (board,) = open_boards(tmp_path, step=step - 1, tensorboard=False, wandb=True)
        board.write(step, {"loss": 1 / step})
        board.close()
    (identity,) = {path.name.split("-")[-1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert identity == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
