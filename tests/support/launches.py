"""What a step asks of a device, operation by operation."""

from torch.utils._python_dispatch import TorchDispatchMode

QUIET = (
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "new_empty",
    "permute",
    "select",
    "slice",
    "split",
    "t",
    "unbind",
    "unsqueeze",
    "view",
    "view_as_real",
)
"""Operations that launch nothing: views, and what makes a tensor without filling it."""

WAITS = frozenset(("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"))
"""Operations whose result the host has to wait for."""


class Launches(TorchDispatchMode):
    """Lists the operations that launch something; one over a list of tensors is one."""

    def __init__(self):
        super().__init__()
        self.names = []

    @property
    def n(self):
        """How many there were."""
        return len(self.names)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in QUIET:
            self.names.append(name)
        return out
