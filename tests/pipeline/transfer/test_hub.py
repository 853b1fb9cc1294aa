"""The hub as a remote: commits, resume, and clear errors instead of waiting."""

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import close_session
from xd3d.cache.maintenance import diff_caches
from xd3d.errors import ConfigError, StoreError
from xd3d.pipeline.transfer import hub as remote
from xd3d.pipeline.transfer.commands import pull, push
from xd3d.pipeline.transfer.manifest import MANIFEST, PLAN

#: The hub's client gives its HTTP library bytes in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "datasets/owner/features"
URL = f"hf://{NAME}"


def send(workspace, cache, **options):
    return push(workspace, str(cache), URL, confirm_licence=True, **options).result


def test_a_push_that_the_hub_broke_off_resumes_with_what_was_not_sent(write_cache, hub, mine, yours, monkeypatch):
    from xd3d.pipeline.transfer import copy

    cache = write_cache(mine)
    monkeypatch.setattr(copy, "BATCH_FILES", 4)
    hub.full_after = 7
    with pytest.raises(StoreError, match="507"):
        send(mine, cache)
    assert len(hub.uploads) == 7
    assert MANIFEST not in hub.repositories[NAME].files
    with pytest.raises(StoreError, match="no finished push"):
        pull(yours, URL)
    hub.full_after = None
    send(mine, cache)
    assert len(hub.uploads) == len(set(hub.uploads))
    assert PLAN not in hub.repositories[NAME].files
    pull(yours, URL)
    assert diff_caches(cache, yours.home / "cache" / cache.name)["equal"]


def test_a_first_push_is_forecast_without_a_repository_and_without_a_token(write_cache, hub, mine, monkeypatch):
    cache = write_cache(mine)
    monkeypatch.delenv("HF_TOKEN")
    forecast = send(mine, cache, dry_run=True)
    assert (forecast["there"], forecast["sent"]) == (0, 0)
    assert NAME not in hub.repositories


def test_files_that_were_committed_before_a_push_broke_off_are_not_even_read_again(write_cache, hub, mine, monkeypatch):
    from xd3d.pipeline.transfer import copy

    cache = write_cache(mine)
    monkeypatch.setattr(copy, "BATCH_FILES", 4)
    monkeypatch.setattr(remote, "COMMIT_FILES", 4)
    hub.full_after = 9
    with pytest.raises(StoreError):
        send(mine, cache)
    committed = len(hub.repositories[NAME].files)
    hub.full_after = None
    done = send(mine, cache)
    assert committed >= 8
    assert 0 < done["there"] < done["bytes"]


def test_a_pull_that_broke_off_resumes_with_what_was_not_fetched(write_cache, hub, mine, yours, monkeypatch):
    from xd3d.pipeline.transfer import copy

    cache = write_cache(mine)
    send(mine, cache)
    monkeypatch.setattr(copy, "BATCH_FILES", 4)
    files = hub.repositories[NAME].files
    late = "features/up1/c/1/0/0/0"
    kept = files.pop(late)
    with pytest.raises(StoreError, match=late):
        pull(yours, URL)
    before = set(hub.downloads)
    hub.downloads.clear()
    files[late] = kept
    done = pull(yours, URL).result
    again = before & {name for name in hub.downloads if "/c/" in name}
    assert len(again) < 8  # those of the batch that failed
    assert done["there"] > 0
    assert diff_caches(cache, Path(done["cache"]))["equal"]


def test_a_push_takes_few_commits(write_cache, hub, mine):
    send(mine, write_cache(mine))
    assert len(hub.repositories[NAME].commits) <= 4


def test_a_pull_reads_one_revision_whatever_is_pushed_meanwhile(write_cache, hub, mine, yours, monkeypatch):
    first, second = write_cache(mine), write_cache(mine, model="4567")
    send(mine, first)
    opened = remote.HubRemote.files

    def files_and_then_a_push(self):
        monkeypatch.setattr(remote.HubRemote, "files", opened)
        found = self.files()
        send(mine, second, replace=True)
        return found

    monkeypatch.setattr(remote.HubRemote, "files", files_and_then_a_push)
    done = pull(yours, URL).result
    assert diff_caches(first, Path(done["cache"]))["equal"]


def test_without_a_token_nothing_is_pushed_and_the_error_says_how_to_log_in(write_cache, hub, mine, yours, monkeypatch):
    cache = write_cache(mine)
    send(mine, cache)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(mine.home / "no-token"))
    for way in (lambda: send(mine, cache), lambda: pull(yours, URL)):
        with pytest.raises(StoreError, match=r"hf auth login.*HF_TOKEN"):
            way()
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    with pytest.raises(StoreError, match=r"token.*owner/other"):
        push(mine, str(cache), "hf://datasets/owner/other", confirm_licence=True)


def test_a_gated_or_missing_repository_is_named_with_the_remedy(write_cache, hub, mine, yours):
    send(mine, write_cache(mine))
    hub.repositories[NAME].gated = True
    with pytest.raises(StoreError, match=f"{hub.address}/{NAME}.*accept its conditions|accept.*{hub.address}/{NAME}"):
        pull(yours, URL)
    with pytest.raises(StoreError, match="owner/nothing"):
        pull(yours, "hf://datasets/owner/nothing")


def test_a_hub_that_does_not_answer_is_an_error_in_time(write_cache, hub, mine, yours, monkeypatch):
    cache = write_cache(mine)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(remote, "TRANSFER_SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    close_session()  # the next one has the limit
    hub.silent = True
    start = time.monotonic()
    with pytest.raises(StoreError, match="does not answer"):
        send(mine, cache)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match="does not answer"):
            pull(yours, URL)
    assert time.monotonic() - start < 60
    close_session()


def test_offline_no_request_is_sent(hub, yours, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE"):
        pull(yours, URL)


@pytest.mark.parametrize(
    "address",
    ["hf://owner/features", "hf://datasets/features", "hf://datasets/owner/../x", "hf://datasets/a/b c", "hf://"],
)
def test_an_address_that_is_no_place_for_a_cache_is_refused(address, write_cache, hub, mine):
    with pytest.raises(ConfigError, match="hf://datasets/owner/name"):
        push(mine, str(write_cache(mine)), address, confirm_licence=True)
