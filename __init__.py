"""Cross-domain LiDAR semantic segmentation that pays for Stable Diffusion once.

Stage one turns camera images into cached diffusion features and object agent queries; stage two trains a sparse 3D
network and its fusion module from that cache.
"""

__version__ = "0.2.0"
__all__ = ["__version__"]
