"""Files that are shared name no folder of this machine, however its name is written in them."""

import json

import pytest
from xd3d.errors import ConfigError
from xd3d.pipeline.transfer.local_paths import Machine


@pytest.mark.parametrize("folder", ["/data/drive", "/daten/Fährten und Straßen"])
def test_a_folder_is_found_in_json_as_it_is_and_escaped(folder):
    machine = Machine(folders=[folder])
    for ascii_only in (True, False):
        content = json.dumps({"key": f"front/{folder}/000000"}, ensure_ascii=ascii_only).encode()
        with pytest.raises(ConfigError, match="names a folder of this machine"):
            machine.require_no_paths("images.json", content)
        machine.require_no_paths("images.json", content.replace(folder[-2:].encode(), b"x"))
