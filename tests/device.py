"""A second device on a machine that has none: the tensors of "gpu" are computed by the CPU's kernels, and kept apart.

A place that mixes the CPU's tensors with a GPU's, or makes one on the wrong device, is a mistake that no test on a CPU
sees. `gpu` is a device of PyTorch's own kind (PrivateUse1) whose tensors hold a CPU tensor inside. An operator that is
given tensors of both devices raises as CUDA would, except where CUDA itself allows it; its results are bit for bit the
CPU's. `waits()` notes what would make the host wait for a GPU. What it cannot tell: whether kernels of the two devices
agree, anything of streams and pinned memory, half precision, compiling, and what is written for `cuda` by name.

    with device.installed():
        network.to("gpu:0")(torch.randn(8, 1, 8, 8, device="gpu:0"), …)
"""

import contextlib
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "gpu"
SRC = str(Path(__file__).parents[1] / "src")

# Where CUDA takes a 0-dimensional CPU tensor for a number: TensorIterator's binary operators, and those that say so.
NUMBERS = {
    *("add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "atan2", "hypot"),
    *(
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "maximum",
        "minimum",
        "logaddexp",
        "copysign",
        "where",
        "masked_fill",
        "fill",
    ),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or", "logical_xor", "index_put"),
    *("_index_put_impl", "addcmul", "addcdiv", "clamp", "xlogy", "nextafter"),
}
COPIES = {"copy", "_to_copy", "_copy_from", "_copy_from_and_resize", "_foreach_copy"}
INDEXING = {"index", "index_put", "_index_put_impl", "_unsafe_index", "_unsafe_index_put"}  # indices may be on the CPU
WAITING = {  # operators whose result has a size, or is a number, that the host must know
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim"),
    *("repeat_interleave", "bincount", "histc", "argwhere", "is_nonzero", "allclose", "_linalg_check_errors"),
}


class Tensor(torch.Tensor):
    """A tensor of the device; `inner` is where it lies."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        outer = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        outer.inner = inner
        return outer

    def __repr__(self):
        return f"gpu:{self.inner!r}"

    def tolist(self):
        return self.cpu().tolist()

    def new_tensor(self, data, *, dtype=None, device=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    def __deepcopy__(self, memo):
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol):  # what lies on the disk is a CPU's tensor
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


PlainGenerator = torch.Generator
_of_the_device: set[int] = set()  # generators' addresses: an operator is handed another Python object


class Generator(PlainGenerator):
    """The CPU's generator; made for the device, it serves the device's tensors only."""

    def __new__(cls, device="cpu"):
        source = super().__new__(cls, "cpu")
        source.place = torch.device(device)
        if source.place.type == NAME:
            _of_the_device.add(source._cdata)
            weakref.finalize(source, _of_the_device.discard, source._cdata)
        return source

    @property
    def device(self):
        return self.place


def computed(function, args, kwargs):
    """The operator on the tensors inside."""
    name = function._schema.name.removeprefix("aten::").removesuffix("_")
    flat, spec = tree_flatten((args, kwargs))
    ours = [x for x in flat if isinstance(x, Tensor)]
    asked = kwargs.get("device")
    ours_made = bool(ours) if asked is None else torch.device(asked).type == NAME
    _check(name, function, flat, args)
    _check_generators(function, flat, ours_made)
    _note(name, function, flat, args, kwargs, ours_made)
    inside = [x.inner if isinstance(x, Tensor) else torch.device("cpu") if _is_ours(x) else x for x in flat]
    known = {id(x): y for x, y in zip(inside, flat, strict=True) if isinstance(x, torch.Tensor)}
    arguments, keywords = tree_unflatten(inside, spec)
    found = function(*arguments, **keywords)
    for outer in ours:
        if outer.shape != outer.inner.shape or outer.stride() != outer.inner.stride():  # squeeze_ and the like
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Python)):
                outer.as_strided_(outer.inner.shape, outer.inner.stride(), outer.inner.storage_offset())

    def outside(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Tensor(x) if ours_made else x

    return tree_map(outside, found)


def _is_ours(x):
    return isinstance(x, torch.device) and x.type == NAME


def _plain(x):
    return isinstance(x, torch.Tensor) and not isinstance(x, Tensor)


def _check(name, function, flat, args):
    """Raises where CUDA would: for tensors of two devices in one operator."""
    if name in COPIES or not any(isinstance(x, Tensor) for x in flat):
        return
    others = [x for x in flat if _plain(x)]
    if name in INDEXING and isinstance(args[0], Tensor):
        indices = [x for x in args[1] if x is not None]
        others = [x for x in others if not any(x is i for i in indices)]
    if name in NUMBERS:
        others = [x for x in others if x.ndim]
    if name == "_fused_adam" or name == "_fused_adamw":
        others = [x for x in others if x.ndim]
    if others:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, gpu:0 and cpu! "
            f"({function}: {[(list(x.shape), str(x.device)) for x in flat if isinstance(x, torch.Tensor)]})"
        )


def _check_generators(function, flat, ours_made):
    for x in flat:
        if isinstance(x, PlainGenerator) and (x._cdata in _of_the_device) != ours_made:
            raise RuntimeError(f"The generator is not of the device on which {function} draws.")


_waits: Counter | None = None


@contextlib.contextmanager
def waits() -> Iterator[Counter]:
    """Counts, by operator and function of src, what makes the host wait for the device, or copies without need."""
    global _waits
    before, _waits = _waits, Counter()
    try:
        yield _waits
    finally:
        _waits = before


def _note(name, function, flat, args, kwargs, ours_made):
    if _waits is None or not (ours_made or any(isinstance(x, Tensor) for x in flat)):
        return
    what = None
    if name in COPIES:
        arrives = ours_made if name == "_to_copy" else isinstance(args[0], Tensor)
        comes = isinstance(args[0 if name == "_to_copy" else 1], Tensor)
        asynchronous = kwargs.get("non_blocking") or (name == "copy" and len(args) > 2 and args[2])
        if arrives != comes and not (asynchronous and arrives):  # to the host it is there when it has come
            what = f"copy {'to' if arrives else 'from'} the device"
    elif name in INDEXING:
        indices = [x for x in args[1] if x is not None]
        if any(_plain(x) or x.dtype in (torch.bool, torch.uint8) for x in indices):
            what = f"{name} by a mask or the CPU's indices"
    elif name in WAITING:
        what = name
    if what is not None:
        _waits[f"{what}: {_where()}"] += 1


def _where():
    """The innermost function of src, or else of whoever called."""
    stack = traceback.extract_stack()
    inside = [f for f in stack if f.filename.startswith(SRC)] or [f for f in stack if f.filename != __file__]
    return f"{Path(inside[-1].filename).name} {inside[-1].name}"


class _Module:
    """What PyTorch asks of a device's module, torch.gpu."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


_libraries: list[torch.library.Library] = []
OWN = ("arange", "arange.start", "arange.start_step", "eye", "eye.m")  # else made of an empty tensor that grows
OWN += ("silu_backward",)  # else computed in steps, and rounded otherwise


def register():
    """Makes the device known to PyTorch, for the rest of the process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _libraries.extend((torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")))
    _libraries[0].fallback(lambda op, *args, **kwargs: computed(op, args, kwargs), "PrivateUse1")
    for name in OWN:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        _libraries[1].impl(name, lambda *args, op=op, **kwargs: computed(op, args, kwargs), "PrivateUse1")


def _tensor(make):
    """torch.tensor or torch.as_tensor, which fills the CPU's memory and copies it, out of a dispatcher's sight."""

    def tensor(data, *, dtype=None, device=None, **options):
        ours = device is not None and torch.device(device).type == NAME
        if isinstance(data, Tensor):
            return data.to(device if device is not None else data.device, dtype)
        found = make(data, dtype=dtype, device="cpu" if ours else device, **options)
        return found.to(device) if ours else found

    return tensor


def _grad(outputs, inputs, grad_outputs=None, *, find=torch.autograd.grad, **options):
    """torch.autograd.grad, which would bring the process down for a gradient of another device."""
    for x in tree_flatten(grad_outputs)[0]:
        if isinstance(x, Tensor) != isinstance(tree_flatten(outputs)[0][0], Tensor):
            raise RuntimeError("Expected all tensors to be on the same device, but grad_outputs are on another.")
    return find(outputs, inputs, grad_outputs, **options)


@contextlib.contextmanager
def installed() -> Iterator[torch.device]:
    """Inside, there is the device, generators have one, and optimizers take its tensors for tensors."""
    register()
    from torch.utils import _foreach_utils

    with (
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch, "tensor", _tensor(torch.tensor)),
        mock.patch.object(torch.autograd, "grad", _grad),
        mock.patch.object(torch, "as_tensor", _tensor(torch.as_tensor)),
        mock.patch.object(_foreach_utils, "_foreach_supported_types", [torch.Tensor, Tensor]),
        torch.autograd.set_multithreading_enabled(False),  # its threads may be older than the device
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        yield torch.device(NAME, 0)


class _Accelerator(Accelerator):
    """What Lightning wants to know of the device."""

    def setup_device(self, device):
        pass

    def get_device_stats(self, device):
        return {}

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return NAME


def place():
    """The arguments by which a Trainer, or a Fabric, runs on the device."""
    return {
        "strategy": SingleDeviceStrategy(torch.device(NAME, 0), _Accelerator()),
        "accelerator": "auto",
        "devices": 1,
    }


@contextlib.contextmanager
def nccl():
    """Inside, there are two processes that do the same, on devices: as NCCL, they take no CPU's tensors."""

    def on_the_device(*tensors):
        if not all(isinstance(x, Tensor) for x in tensors):
            raise RuntimeError("No backend type associated with device type cpu")

    def all_gather(parts, x, *_, **__):
        on_the_device(x, *parts)
        for part in parts:
            part.copy_(x)

    def all_reduce(x, op=torch.distributed.ReduceOp.SUM, *_, **__):
        on_the_device(x)
        if op == torch.distributed.ReduceOp.SUM:
            x.mul_(2)

    functions = {
        "is_initialized": lambda: True,
        "get_world_size": lambda *_: 2,
        "get_rank": lambda *_: 0,
        "get_backend": lambda *_: "nccl",
        "barrier": lambda *_, **__: None,
        "all_gather": all_gather,
        "all_reduce": all_reduce,
    }
    with contextlib.ExitStack() as patches:
        for name, function in functions.items():
            patches.enter_context(mock.patch.object(torch.distributed, name, function))
        yield
