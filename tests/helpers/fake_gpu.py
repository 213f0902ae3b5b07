"""Tensors on "cuda" without values, for a torch that was built without CUDA."""

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


def _index(tensor, index):
    """What `tensor[index]` is before the tensors in the index, and these by dimension."""
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [i for i in index if not isinstance(i, torch.Tensor)]:
        at = next(n for n, i in enumerate(index) if i is Ellipsis)
        index[at : at + 1] = [slice(None)] * (
            tensor.dim() - sum(i is not None and i is not Ellipsis for i in index)
        )
    dim, tensors = 0, {}
    for i in index:
        if i is None:
            tensor = aten.unsqueeze(tensor, dim)
        elif isinstance(i, torch.Tensor):
            tensors[dim] = i
        elif isinstance(i, slice):
            tensor = aten.slice(tensor, dim, i.start, i.stop, i.step or 1)
        else:
            tensor = aten.select(tensor, dim, i)
            dim -= 1
        dim += 1
    return tensor, [tensors.get(d) for d in range(max(tensors) + 1)] if tensors else None


class WithoutDriver(TorchFunctionMode):
    """Methods that ask for the device's driver, by operations that do not."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.__getitem__:
            tensor, indices = _index(*arguments)
            return tensor if indices is None else aten.index(tensor, indices)
        if function is torch.Tensor.__setitem__:
            tensor, indices = _index(*arguments[:2])
            if indices is None:
                return tensor.copy_(arguments[2])
            return aten.index_put_(tensor, indices, arguments[2])
        if function is torch.Tensor.__invert__:
            return aten.bitwise_not(*arguments)
        return function(*arguments, **(keywords or {}))


@contextlib.contextmanager
def fake_gpu(monkeypatch, number: int):
    """Mixing what lies there with what lies on the CPU raises, as on a GPU; yields its device.

    Args:
        monkeypatch: pytest's.
        number: what every integer reads as that is taken from a tensor.
    """
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: number)
    # Autograd records the streams of a device.
    with torch.no_grad(), FakeTensorMode(), WithoutDriver():
        yield torch.device("cuda", 0)
