import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from xd3d.stages.train.settings import AugmentSettings, FusionSettings, ModelSettings, TrainSettings

STILL = AugmentSettings(rotation_noise=0.0, flip="none", rotate=False, translate=False)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: more threads make tiny tensors slower, especially on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_domains() -> ModuleType:
    """The module that makes tiny domains."""
    return load("tiny_domains")


@pytest.fixture(scope="session")
def together() -> ModuleType:
    """The module that starts several processes."""
    return load("train/together")


@pytest.fixture(scope="session")
def load_module() -> Callable[[str], ModuleType]:
    """Call it with the path of a file below this folder, without its suffix."""
    return load


@pytest.fixture
def make_domain(tiny_domains: ModuleType, tmp_path: Path) -> Callable:
    """Call it with ``frames``, ``cameras``, ``points``, ``seed`` or ``lidar_only`` to make a new domain."""

    def make(**options):
        return tiny_domains.write_domain(tmp_path / f"data{len(list(tmp_path.glob('data*')))}", **options)

    return make


@pytest.fixture
def small_fusion() -> Callable[..., FusionSettings]:
    """Fusion settings of small width; keyword arguments replace values."""
    base = {"tokens": 6, "query_channels": 16, "rank": 3, "image_channels": 8}
    return lambda **values: FusionSettings(**{**base, **values})


@pytest.fixture(scope="session")
def paper() -> dict[str, str]:
    """The fusion settings of the paper, except for the head: only queries connect image and cloud."""
    return {"queries": "agents", "inject": "none", "context": "none", "decoupling": "loss"}


@pytest.fixture
def make_network(small_fusion: Callable) -> Callable:
    """A seeded slim network for a domain; keyword arguments go to the fusion settings."""
    from xd3d.stages.train.network import Network, choose_taps

    def make(domain, **values):
        torch.manual_seed(3)
        fusion = small_fusion(**values)
        return Network(
            model=ModelSettings(preset="slim", backend="torch"),
            fusion=fusion,
            classes=domain.merge.classes,
            taps=choose_taps(fusion, domain.features.taps if domain.features else {}),
            cameras=len(domain.index.cameras),
            device=torch.device("cpu"),
        )

    return make


@pytest.fixture
def load_run() -> Callable:
    """Call it with a run's folder for its network, built from its record alone."""
    from xd3d.stages.train.checkpoint import best_step
    from xd3d.stages.train.record import load_network, read_record

    def load(run):
        record = read_record(run)
        model = ModelSettings.model_validate({**record["model"], "backend": "auto"})
        fusion = FusionSettings.model_validate(record["fusion"])
        return load_network(run, record, best_step(run), model=model, fusion=fusion, device="cpu")

    return load


@pytest.fixture
def make_batch() -> Callable:
    """Call it with a domain and a network for a batch of ``frames`` frames without augmentation."""
    from xd3d.stages.train.loader import training_batch

    def make(domain, network, *, frames=2, augment=STILL, step=0, seed=1):
        return training_batch(domain, network.plan, augment, batch_size=frames, seed=seed, step=step)

    return make


@pytest.fixture
def train_settings() -> Callable[..., TrainSettings]:
    """Settings of a run of a few steps on the CPU; keyword arguments replace values."""
    base = {"steps": 6, "batch_size": 2, "validate_every": 3, "checkpoint_every": 2, "workers": 0, "device": "cpu"}
    return lambda **values: TrainSettings(**{**base, **values})


@pytest.fixture
def awake() -> Callable:
    """Call it with a network to randomise the weights of its fusion that are initialised to zero."""

    def wake(network):
        torch.manual_seed(7)
        for name, parameter in network.named_parameters():
            if name.startswith(("injection.", "read_context.")) or ".depth." in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return network

    return wake
