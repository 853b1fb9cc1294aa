"""A CUDA device that is not there: tensors that claim to be on ``cuda:0`` while the CPU does their arithmetic.

It shows where tensors lie, what is copied to the device and from which memory, and what waits for the device. It does
not show CUDA's kernels, the order of streams, NCCL or spconv.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
PACKAGE = Path(__file__).parents[1]
FACTORIES = ("arange", "rand", "randn", "zeros", "ones", "empty", "full", "tensor", "as_tensor", "eye", "linspace")
#: operations after which the host waits for the device: it needs a value, or a size that depends on values
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "equal.default",
    "bincount",
    "_unique",
    "unique_dim",
    "masked_select",
    "linalg_eigh",
    "linalg_svd",
)
#: CUDA takes indices from the CPU here, at the price of a copy
TAKES_CPU = ("aten.index.Tensor", "aten._index_put_impl_.default", "aten.index_put.default", "aten.index_put_.default")


class Traffic:
    """What happened on the device since the last ``clear``, each with the place in the project's code."""

    def __init__(self) -> None:
        self.mixed: Counter[str] = Counter()  #: operations on tensors of both devices
        self.waits: Counter[str] = Counter()  #: the host waited for the device
        self.pinned: Counter[str] = Counter()  #: copies to the device from pinned memory, not waited for
        self.pageable: Counter[str] = Counter()  #: copies to the device from other memory
        self._pinned_memory: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Forget what was counted."""
        for each in (self.mixed, self.waits, self.pinned, self.pageable):
            each.clear()

    def note(self, counter: Counter, what: str) -> None:
        """Count ``what`` where it happened."""
        frames = [each for each in traceback.extract_stack() if each.filename.startswith(str(PACKAGE))]
        own = [each for each in frames if "site-packages" not in each.filename and each.filename != __file__]
        counter[f"{what} at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else what] += 1

    def pin(self, tensor: Tensor) -> Tensor:
        """Remember that the memory of ``tensor`` is pinned."""
        self._pinned_memory[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies in memory that was pinned."""
        address = tensor.untyped_storage().data_ptr()
        return any(first <= address < first + held.nbytes for first, held in self._pinned_memory.items())


class _Pretend(Tensor):
    """A tensor on ``cuda:0`` by its own account; ``held`` has the values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    traffic: Traffic

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool | None = None):
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
            requires_grad=held.requires_grad if requires_grad is None else requires_grad,
        )
        made.held = held.detach() if held.requires_grad else held
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self):
        return f"Pretend({self.held})"

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def tolist(self):
        self.traffic.note(self.traffic.waits, "tolist")
        return self.held.tolist()

    def cpu(self):
        return self.to("cpu")

    def new_tensor(self, data, **options):
        return _Pretend(self.held.new_tensor(data, **{key: each for key, each in options.items() if key != "device"}))

    def record_stream(self, stream):
        assert isinstance(stream, _Stream)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs, traffic, name = kwargs or {}, cls.traffic, str(func)
        leaves = tree_leaves((args, kwargs))
        tensors = [each for each in leaves if isinstance(each, Tensor)]
        if any(each in name for each in WAITS) or (
            name in TAKES_CPU and any(each.dtype == torch.bool for each in tensors[1:])
        ):
            traffic.note(traffic.waits, name)
        plain = [each for each in tensors if not isinstance(each, _Pretend) and each.dim() > 0]
        if plain and name in TAKES_CPU:
            traffic.note(traffic.pageable, name)
        elif plain and "copy_" not in name and not (name == "aten.cat.default" and _in_backward()):
            traffic.note(traffic.mixed, f"{name} with a CPU tensor {[tuple(each.shape) for each in plain]}")
        own_args, own_kwargs = tree_map(_held, args), tree_map(_held, kwargs)
        found = func(*own_args, **own_kwargs)
        same = {id(each.held): each for each in tensors if isinstance(each, _Pretend)}

        def wrapped(value):
            if not isinstance(value, Tensor) or isinstance(value, _Pretend):
                return value
            return same.get(id(value)) if id(value) in same else _Pretend(value)

        return tree_map(wrapped, found)


class _Event:
    def synchronize(self):
        pass


class _Stream:
    def __init__(self, device=None):
        self.device = device

    def record_event(self):
        return _Event()

    def wait_event(self, event):
        assert isinstance(event, _Event)


def _in_backward() -> bool:
    """Whether autograd is at work, whose zeros for an unused part of a ``chunk`` follow the real device, not ours."""
    return torch._C._current_graph_task_id() != -1


def _held(value):
    return value.held if isinstance(value, _Pretend) else value


def _is_cuda(value) -> bool:
    if isinstance(value, Tensor):
        return value.device == CUDA
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )


def _on_cpu(value):
    return torch.device("cpu") if _is_cuda(value) and not isinstance(value, Tensor) else _held(value)


def _factory(real, traffic):
    def make(*args, device=None, pin_memory=False, **options):
        if device is not None and _is_cuda(device):
            made = real(*args, device="cpu", **options)
            return made if isinstance(made, _Pretend) else _Pretend(made.detach(), requires_grad=made.requires_grad)
        made = real(*args, **options) if device is None else real(*args, device=device, **options)
        return traffic.pin(made) if pin_memory else made

    return make


def _mover(real, traffic):
    def to(tensor, *args, **options):
        targets = [*args, *options.values()]
        own_args, own_options = [_on_cpu(each) for each in args], {key: _on_cpu(each) for key, each in options.items()}
        if isinstance(tensor, _Pretend):
            if any(str(each) == "cpu" for each in targets if isinstance(each, str | torch.device)):
                if not options.get("non_blocking"):
                    traffic.note(traffic.waits, "copy to the CPU")
                return real(tensor.detach().held, *own_args, **own_options).clone()
            with torch._C.DisableTorchFunctionSubclass():
                return real(tensor, *own_args, **own_options)
        if not any(_is_cuda(each) for each in targets):
            return real(tensor, *args, **options)
        free = options.get("non_blocking") and traffic.is_pinned(tensor)
        traffic.note(traffic.pinned if free else traffic.pageable, f"copy of {tuple(tensor.shape)}")
        return _Pretend(real(tensor, *own_args, **own_options).detach().clone())

    return to


def _enter_no_grad(self):
    """Inference mode wants tensors with a version counter, which a wrapper does not have."""
    self.guard = torch.no_grad()
    self.guard.__enter__()


def _renamed(device_type):
    return "cpu" if device_type == "cuda" else device_type


@contextmanager
def pretend_cuda() -> Iterator[Traffic]:
    """While it is open, ``cuda:0`` exists for the arithmetic of tensors, autocast, loss scaling and streams."""
    traffic = _Pretend.traffic = Traffic()
    enabled, kind, overwrite = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.__future__

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **options):
            super().__init__(_renamed(device_type), *args, **options)

    class Scaler(torch.amp.GradScaler):
        def __init__(self, device="cuda", *args, **options):
            super().__init__(_renamed(device), *args, **options)

    before = overwrite.get_overwrite_module_params_on_conversion()
    overwrite.set_overwrite_module_params_on_conversion(True)
    with ExitStack() as stack:
        for name in FACTORIES:
            stack.enter_context(patch.object(torch, name, _factory(getattr(torch, name), traffic)))
        for owner, name, value in (
            (Tensor, "to", _mover(Tensor.to, traffic)),
            (Tensor, "is_pinned", lambda tensor: traffic.is_pinned(tensor)),
            (torch.inference_mode, "__enter__", _enter_no_grad),
            (torch.inference_mode, "__exit__", lambda self, *error: self.guard.__exit__(*error)),
            (torch, "autocast", Autocast),
            (torch.amp, "autocast", Autocast),
            (torch.amp, "GradScaler", Scaler),
            (torch, "is_autocast_enabled", lambda device="cpu": enabled(_renamed(device))),
            (torch, "get_autocast_dtype", lambda device: kind(_renamed(device))),
            (torch.cuda, "Stream", _Stream),
            (torch.cuda, "stream", lambda _: nullcontext()),
            (torch.cuda, "current_stream", lambda *_: _Stream()),
        ):
            stack.enter_context(patch.object(owner, name, value))
        try:
            yield traffic
        finally:
            overwrite.set_overwrite_module_params_on_conversion(before)
