"""Counts the operators that reach a device."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Count(TorchDispatchMode):
    """Counts operators; not those that only make a view of a tensor, which no device sees, nor what is no operator."""

    views = {"view", "_unsafe_view", "t", "transpose", "unsqueeze", "squeeze", "expand", "slice", "unbind", "detach"}
    views |= {"split_with_sizes", "permute", "alias", "split", "select", "as_strided", "_reshape_alias"}
    others = {"promote_types", "profiler::_record_function_enter_new", "profiler::_record_function_exit"}

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))

    def total(self):
        return sum(n for name, n in self.seen.items() if name not in self.views | self.others)

    @property
    def scalar_reads(self):
        return self.seen["_local_scalar_dense"]
