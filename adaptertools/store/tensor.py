"""Raw bits as a torch tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertools.store.dtypes import torch_dtype

if TYPE_CHECKING:
    import torch


def as_tensor(bits: Any, dtype: str) -> torch.Tensor:
    """Return raw bits (unsigned integers as wide as the dtype) as a torch tensor of `dtype`."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch_dtype(dtype))
