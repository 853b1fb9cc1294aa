"""Fixtures of stage one's tests: a tiny Stable Diffusion folder with random weights, and an index of a few pictures."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from xd3d.stages.datasets.index import FrameIndex, FrameTable, ImageTable
from xd3d.stages.extract.settings import ExtractSettings

IMAGE_SIZE = (100, 180)  # height and width that are no multiples of 8, so padding and odd maps are in every test


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer that knows letters and nothing else; like SD 2.x it pads with '!'."""
    folder.mkdir()
    words = ["!", *"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh"), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    facts = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
        "model_max_length": 12,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def write_pipeline(folder: Path) -> None:
    """Write a complete Stable Diffusion folder of a few thousand parameters: four up blocks, VAE factor 8."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(7)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.31,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 24),
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
    ).save_pretrained(folder / "unet")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=19,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=17,
            eos_token_id=18,
            pad_token_id=0,
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(beta_schedule="scaled_linear", num_train_timesteps=1000).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete diffusers folder; read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny model"
    folder.mkdir()
    write_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_networks() -> ModuleType:
    """The module that writes tiny networks of other kinds."""
    spec = importlib.util.spec_from_file_location("tiny_networks", Path(__file__).with_name("tiny_networks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def network_folder(
    tiny_networks: ModuleType, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Call it for the folder of a tiny network: "diffusers", "onnx" or an architecture of transformers; read only."""

    @cache
    def make(name: str) -> Path:
        folder: Path = tmp_path_factory.mktemp("networks") / name
        if name == "onnx":
            return tiny_networks.write_onnx(folder)
        return tiny_model if name == "diffusers" else tiny_networks.write_network(folder, name)

    return make


@pytest.fixture
def settings(tiny_model: Path) -> Callable[..., ExtractSettings]:
    """Call it with the settings that differ from a small float32 run on the CPU."""

    def make(**changes: Any) -> ExtractSettings:
        base: dict[str, Any] = {
            "model": str(tiny_model),
            "image_size": IMAGE_SIZE,
            "device": "cpu",
            "dtype": "float32",
            "batch_size": 2,
            "agents": {"count": 12, "rounds": 3},
        }
        return ExtractSettings(**(base | changes))

    return make


def picture(rng: np.random.Generator, width: int = 320, height: int = 180) -> Image.Image:
    coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[..., FrameIndex]:
    """Call it for an index of ``frames`` frames with ``cameras`` pictures each, written to a root of its own."""

    def make(frames: int = 3, cameras: int = 1, seed: int = 0) -> FrameIndex:
        rng = np.random.default_rng(seed)
        root = tmp_path / "data root"
        (root / "images").mkdir(parents=True, exist_ok=True)
        images = frames * cameras
        paths = [f"images/{i}.png" for i in range(images)]
        for path in paths:
            picture(rng).save(root / path)
        names = np.array([f"frame{i}" for i in range(frames)])
        empty = np.array([""] * frames)
        return FrameIndex(
            dataset="pictures",
            version="test",
            root=root,
            cameras=tuple(f"CAM{i}" for i in range(cameras)),
            frames=FrameTable(
                key=names, scene=names, location=empty, description=empty, split=empty, sweep=empty, labels=empty
            ),
            images=ImageTable(
                frame=np.repeat(np.arange(frames), cameras),
                key=np.array([f"image{seed}-{i}" for i in range(images)]),
                camera=np.array([f"CAM{i % cameras}" for i in range(images)]),
                path=np.array(paths),
                size=np.tile([320, 180], (images, 1)),
                intrinsics=np.tile(np.eye(3), (images, 1, 1)),
                camera_from_lidar=np.tile(np.eye(4), (images, 1, 1)),
            ),
        )

    return make


@pytest.fixture
def forked_workers() -> Iterator[None]:
    """Start dask workers from a server that has imported what they need."""
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(
            [
                "distributed",
                "xd3d.stages.extract.dask_workers",
                "diffusers.models.autoencoders.autoencoder_kl",
                "diffusers.models.unets.unet_2d_condition",
                "transformers.models.clip.modeling_clip",
            ]
        )
        yield
