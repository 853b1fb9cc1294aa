import numpy as np
import torch
from xd3d.stages.synthesize.tiny_pipeline.modules import build_vae
from xd3d.stages.synthesize.tiny_pipeline.train_networks import (
    encode,
    reconstruct,
    reconstruction_psnr,
    standardise_latents,
)


def test_standardised_latents_have_one_scale_and_the_same_reconstructions() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 42, 50, 3), dtype=np.uint8)
    vae = build_vae(3).eval()
    with torch.no_grad():
        vae.quant_conv.bias += 1.5
    image = torch.rand(1, 3, 32, 32)
    before, variance = reconstruct(vae, pictures), vae.encode(image).latent_dist.logvar
    deviation = torch.cat([encode(vae, pictures[row : row + 1]) for row in range(3)]).std((0, 2, 3))

    standardise_latents(vae, pictures)

    latents = torch.cat([encode(vae, pictures[row : row + 1]) for row in range(3)])
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(8), atol=1e-4)
    assert np.abs(reconstruct(vae, pictures).astype(int) - before).max() <= 1
    shift = variance - vae.encode(image).latent_dist.logvar
    assert torch.allclose(shift, (2 * deviation.log())[:, None, None].expand_as(shift), atol=1e-4)


def test_psnr_agrees_with_its_definition_and_pictures_of_any_size_keep_it() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 37, 45, 3), dtype=np.uint8)
    vae = build_vae(3).eval()
    decoded = reconstruct(vae, pictures)
    assert decoded.shape == pictures.shape
    errors = [float(((decoded[row] / 255 - pictures[row] / 255) ** 2).mean()) for row in range(2)]
    assert np.allclose(reconstruction_psnr(vae, pictures), -10 * np.log10(errors))
