"""Which backend is chosen on which machine, with the reason a user reads."""

from types import SimpleNamespace

import pytest
from xd3d.errors import BackendError
from xd3d.stages.train.sparse import choose_backend, make_backend


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these wheels are installed."""

    def pretend(**versions):
        found = [
            SimpleNamespace(metadata={"Name": name.replace("_", "-")}, version=version)
            for name, version in {"torch": "2.13.0", **versions}.items()
        ]
        monkeypatch.setattr("xd3d.stages.train.sparse.backend.metadata.distributions", lambda: found)

    return pretend


def test_the_cpu_default_is_torch_even_where_spconv_is_installed(installed):
    installed(spconv_cu118="2.3.8")
    choice = choose_backend("auto", "cpu")
    assert choice.name == "torch"
    assert "cpu" in choice.reason


def test_a_gpu_takes_spconv_where_a_gpu_build_is_installed(installed):
    installed(spconv_cu118="2.3.8")
    choice = choose_backend("auto", "cuda")
    assert choice.name == "spconv"
    assert "spconv-cu118 2.3.8" in choice.reason


def test_a_gpu_without_spconv_takes_torch_and_says_what_to_install(installed):
    installed()
    choice = choose_backend("auto", "cuda")
    assert choice.name == "torch"
    assert "pip install spconv-cu118" in choice.reason


def test_spconv_by_name_but_not_installed(installed):
    installed()
    with pytest.raises(BackendError, match=r"pip install spconv-cu118.*model\.backend=torch"):
        choose_backend("spconv", "cuda")


@pytest.mark.parametrize("others", [{}, {"spconv_cu118": "2.3.8"}])
def test_the_cpu_build_named_spconv_is_refused(installed, others):
    installed(spconv="2.3.8", **others)
    with pytest.raises(BackendError, match=r"'spconv' 2\.3\.8 is a CPU build that computes wrong results"):
        make_backend("spconv", "cpu")
    assert choose_backend("auto", "cuda").name == "torch"
    assert "wrong results" in choose_backend("auto", "cuda").reason


def test_torch_by_name_needs_nothing_else(installed):
    installed(spconv="2.3.8")
    assert choose_backend("torch", "cuda").name == "torch"
    assert make_backend("torch", "cpu").name == "torch"


def test_a_mistyped_name_gets_the_nearest_one():
    with pytest.raises(BackendError, match="'spcnov'; did you mean 'spconv'"):
        choose_backend("spcnov", "cpu")
