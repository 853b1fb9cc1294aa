"""Makes ``tiny-street``: a whole diffusion pipeline trained on rendered streets, small enough to ship.

``python -m xd3d.stages.synthesize.tiny_pipeline OUT`` renders pictures of streets in random styles, trains an
autoencoder on them, trains a UNet on its latents, and writes a folder that ``StableDiffusionPipeline.from_pretrained``
loads. The results are in ``docs/tiny-street.md``.
"""
