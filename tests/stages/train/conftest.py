"""What tests of training with a target share."""

import shutil
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file
from xd3d.stages.adapt.pseudo_labels import candidates
from xd3d.stages.predict.inference import predict_batch
from xd3d.stages.train.loop import train
from xd3d.stages.train.pseudo_label_choice import LabelRule
from xd3d.stages.train.settings import AugmentSettings, ModelSettings

MODEL = ModelSettings(preset="slim", backend="torch")


@pytest.fixture(scope="session")
def label_batch():
    """Label a batch by the rule of stored labels."""

    def label(network, batch):
        return candidates(predict_batch(network, batch, fusion="product-prior"), LabelRule(), what="of a batch")

    return label


@pytest.fixture
def adapt(small_fusion, train_settings, label_batch):
    """Train two steps on a source and a target; keyword arguments replace settings or, as ``fusion``, the variant."""

    def run(folder, source, target, *, init=None, fusion=None, **values):
        values = {"steps": 2, "lam_trg": 0.5, "source_free": source is None, **values}
        settings = train_settings(**values, init=str(init) if init else None)
        train(
            run=folder,
            source=source,
            target=target,
            validation=None,
            init=init,
            model=MODEL,
            fusion=fusion or small_fusion(),
            augment=AugmentSettings(),
            settings=settings,
            label=label_batch,
        )
        return load_file(folder / f"checkpoints/step-{settings.steps:08d}/model.safetensors")

    return run


@pytest.fixture
def trained(make_domain, adapt, tmp_path):
    """A run on a source that is gone since."""
    source = make_domain(frames=3, points=80)
    adapt(tmp_path / "trained", source, None, lam_trg=0.0)
    shutil.rmtree(source.index.root)
    return tmp_path / "trained"


@pytest.fixture
def failing_disk():
    """In this context the features of a domain can be read ``reads`` times; then an ``OSError`` is expected."""

    @contextmanager
    def fail(domain, reads):
        read, left = domain.features.read, iter(range(reads))

        def limited(rows):
            if next(left, None) is None:
                raise OSError("the disk went away")
            return read(rows)

        domain.features.read = limited
        with pytest.raises(OSError, match="went away"):
            yield
        domain.features.read = read

    return fail
