"""Sparse 3D convolution with one interface and one state_dict for two backends: plain PyTorch and spconv."""

from .backend import Backend, BackendChoice, choose_backend, make_backend
from .maps import KernelMap, KernelMaps, build_kernel_maps
from .modules import DownConv3d, InverseConv3d, SubMConv3d
from .tensor import SparseTensor

__all__ = [
    "Backend",
    "BackendChoice",
    "DownConv3d",
    "InverseConv3d",
    "KernelMap",
    "KernelMaps",
    "SparseTensor",
    "SubMConv3d",
    "build_kernel_maps",
    "choose_backend",
    "make_backend",
]
