"""Which backend is chosen on which machine, with the reason a user reads."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from xd3d.errors import BackendError
from xd3d.stages.train.sparse import backend, choose_backend, make_backend, spconv_build

WHEEL = ((7, 5), (8, 0), (8, 6), (9, 0))


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these wheels are installed."""

    def pretend(**versions):
        found = [
            SimpleNamespace(metadata={"Name": name.replace("_", "-")}, version=version)
            for name, version in {"torch": "2.13.0", **versions}.items()
        ]
        monkeypatch.setattr("xd3d.stages.train.sparse.spconv_build.metadata.distributions", lambda: found)

    return pretend


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU of this compute capability, and that spconv was compiled for ``compiled``."""

    def pretend(capability, compiled=WHEEL):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Brand New")
        monkeypatch.setattr(spconv_build, "compiled_capabilities", lambda: compiled)

    backend._warn.cache_clear()
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
    with pytest.raises(BackendError, match=r"'spconv' 2\.3\.8 is.*CPU"):
        make_backend("spconv", "cpu")
    assert choose_backend("auto", "cuda").name == "torch"
    assert "wrong results" in choose_backend("auto", "cuda").reason


def test_torch_by_name_needs_nothing_else(installed):
    installed(spconv="2.3.8")
    assert choose_backend("torch", "cuda").name == "torch"
    assert make_backend("torch", "cpu").name == "torch"


def test_a_mistyped_name_gets_the_nearest_one():
    with pytest.raises(BackendError, match=r"'spcnov'.*'spconv'"):
        choose_backend("spcnov", "cpu")


@pytest.mark.parametrize("version", ["spconv_cu120", "spconv_cu126"])
def test_whichever_build_is_installed_is_found(installed, version):
    installed(**{version: "2.3.6"})
    assert choose_backend("spconv", "cuda").reason.endswith(f"{version.replace('_', '-')} 2.3.6 is installed")


def test_builds_that_lie_over_each_other_are_all_named(installed):
    installed(spconv_cu118="2.3.8", spconv_cu126="2.3.8")
    assert "spconv-cu118 2.3.8 and spconv-cu126 2.3.8" in choose_backend("auto", "cuda").reason


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)])
def test_a_gpu_runs_what_was_compiled_for_its_generation(installed, gpu, capability):
    installed(spconv_cu118="2.3.8")
    gpu(capability)
    assert choose_backend("auto", "cuda").name == choose_backend("spconv", "cuda").name == "spconv"


@pytest.mark.parametrize("capability", [(12, 0), (10, 0), (7, 0), (6, 1)])
def test_a_gpu_that_spconv_was_not_compiled_for_takes_torch_with_one_warning(installed, gpu, capability, caplog):
    installed(spconv_cu118="2.3.8")
    gpu(capability)
    with caplog.at_level(logging.WARNING):
        assert [make_backend("auto", "cuda").name for _ in range(3)] == ["torch"] * 3
    (warning,) = caplog.messages
    assert "spconv-cu118 2.3.8 was compiled for GPUs of compute capability 7.5, 8.0, 8.6, 9.0" in warning
    assert f"(Brand New) has {capability[0]}.{capability[1]}" in warning


def test_spconv_by_name_on_a_gpu_it_was_not_compiled_for_is_refused(installed, gpu):
    installed(spconv_cu118="2.3.8")
    gpu((12, 0))
    with pytest.raises(BackendError, match=r"8\.6, 9\.0.*\(Brand New\) has 12\.0.*model\.backend=torch"):
        make_backend("spconv", "cuda")


def test_a_build_that_tells_nothing_of_its_gpus_is_taken(installed, gpu):
    installed(spconv_cu118="2.0.0")
    gpu((12, 0), compiled=())
    assert choose_backend("auto", "cuda").name == "spconv"


def test_a_missing_spconv_is_no_reason_for_a_warning(installed, gpu, caplog):
    installed()
    gpu((9, 0))
    assert make_backend("auto", "cuda").name == "torch"
    assert not caplog.messages


def test_a_build_that_does_not_import_gives_way_to_torch_unless_it_was_asked_for(installed, gpu, monkeypatch, caplog):
    installed(spconv_cu118="2.3.8")
    gpu((9, 0))
    monkeypatch.delitem(sys.modules, "xd3d.stages.train.sparse.spconv_backend", raising=False)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    assert [make_backend("auto", "cuda").name for _ in range(2)] == ["torch"] * 2
    (warning,) = caplog.messages
    assert "does not import" in warning
    with pytest.raises(BackendError, match="does not import"):
        make_backend("spconv", "cuda")


@pytest.fixture
def core(monkeypatch):
    """Put this in place of what spconv's compiled core tells of itself."""

    def pretend(told):
        for name in ("spconv", "spconv.core_cc", "spconv.core_cc.cumm"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        module = ModuleType("spconv.core_cc.cumm.common")
        if told is not None:
            module.CompileInfo = SimpleNamespace(**told)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    spconv_build.compiled_capabilities.cache_clear()
    yield pretend
    spconv_build.compiled_capabilities.cache_clear()


def test_the_capabilities_are_read_from_the_core_in_order(core):
    core({"get_compiled_cuda_arch": lambda: [(9, 0), (7, 5)]})
    assert spconv_build.compiled_capabilities() == ((7, 5), (9, 0))


@pytest.mark.parametrize("told", [None, {}, {"get_compiled_cuda_arch": lambda: None}])
def test_a_core_that_tells_nothing_has_no_capabilities(core, told):
    core(told)
    assert spconv_build.compiled_capabilities() == ()


def test_the_capabilities_of_the_wheel_that_is_installed_are_known():
    build, fault = spconv_build.installed_build()
    if fault:
        pytest.skip(fault)
    assert (8, 0) in spconv_build.compiled_capabilities(), build
