"""The builders are right, so that the other tests mean something."""

from __future__ import annotations

import numpy as np
import torch
from builders import decode, encode


def test_bf16_of_the_builders() -> None:
    """The builders' own bf16 agrees with torch, so that the checks here mean something."""
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    ours = decode(encode(values, "BF16"))
    np.testing.assert_array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())
