"""MLX adapters, made and fused by mlx-lm itself.

Run with the Python of each mlx-lm version: it makes that version's cases. 0.32.2 makes the current
ones; 0.21.5 (experts' lora_a is 2-D), 0.12.0 (`alpha` beside `scale`, `lora_layers`) and 0.4.0
(adapters.npz, no config) make one old layout each.
"""

from __future__ import annotations

import copy
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.lora
import numpy as np
from cases import EVEN, HERE, LLAMA, PROBE, fresh, keep_expected, keep_logits, numbers, say
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils
from mlx_lm.tuner import utils as tuner

MIXTRAL = HERE / "base-mixtral"
SWITCH = [f"block_sparse_moe.switch_mlp.{name}_proj" for name in ("gate", "up", "down")]
# (0.21.5 cannot run a LoRA on down_proj)
EXPERT = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
LORA = {"rank": 4, "scale": 20.0, "dropout": 0.0}


@dataclass(frozen=True)
class Case:
    """One adapter: its base, and the training arguments that describe it."""

    base: Path
    layers: int
    lora: dict[str, Any]
    kind: str = "lora"
    extra: dict[str, Any] = field(default_factory=dict)


OLD = {"rank": 4, "alpha": 6.0, "scale": 10.0, "dropout": 0.0}
CASES = {
    "0.32": {
        "lora": Case(LLAMA, 2, LORA),
        "dora": Case(LLAMA, 1, LORA | {"keys": ["self_attn.q_proj", "mlp.down_proj"]}, "dora"),
        "embeddings": Case(
            LLAMA, 2, LORA | {"keys": ["model.embed_tokens", "lm_head", "self_attn.k_proj"]}
        ),
        "dora-embeddings": Case(LLAMA, 1, LORA | {"keys": ["model.embed_tokens"]}, "dora"),
        "switch": Case(MIXTRAL, 1, LORA | {"rank": 3, "keys": [*SWITCH, "block_sparse_moe.gate"]}),
    },
    "0.21": {"switch-2d": Case(MIXTRAL, 1, LORA | {"rank": 3, "keys": SWITCH[:2]})},
    "0.12": {
        "alpha-scale": Case(EVEN, 1, OLD | {"keys": ["self_attn.k_proj", "mlp.up_proj"]}),
    },
    "0.4": {
        "npz": Case(EVEN, 1, {"rank": 8, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}),
        "npz-rank4": Case(EVEN, 1, {"rank": 4, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}),
    },
}


def load_base(base: Path) -> Any:
    """Return mlx-lm's model of a base, in fp32 on the CPU."""
    loaded = utils.load_model(base)
    return loaded[0] if isinstance(loaded, tuple) else loaded


def make(case: Case, label: str, folder: Path) -> None:
    """Do what training does, without the steps: add layers, draw weights, save file and config."""
    model = load_base(case.base)
    model.freeze()
    dora = {"use_dora": True} if case.kind == "dora" else {}
    tuner.linear_to_lora_layers(model, case.layers, dict(case.lora), **dora)
    drawn = []
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith(".m"):
            array = np.array(value) * (1 + numbers(f"mlx/{label}/{name}", value.shape, 0.2))
        else:
            array = numbers(f"mlx/{label}/{name}", value.shape, 0.05)
        drawn.append((name, mx.array(array)))
    model.load_weights(drawn, strict=False)
    weights = dict(tree_flatten(model.trainable_parameters()))
    if "adapter_file" in mlx_lm.lora.CONFIG_DEFAULTS:  # the era of the lone npz
        mx.savez(str(folder / "adapters.npz"), **weights)
        return
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    args = copy.deepcopy(mlx_lm.lora.CONFIG_DEFAULTS)
    args |= {"lora_parameters": dict(case.lora), "train": True, "model": case.base.name}
    args["num_layers" if "num_layers" in args else "lora_layers"] = case.layers
    if "fine_tune_type" in args:
        args["fine_tune_type"] = case.kind
    utils.save_config(args, folder / "adapter_config.json")


def load(base: Path, folder: Path) -> Any:
    """Return the model with the adapter on it, by the version's own loader."""
    model = load_base(base)
    if hasattr(tuner, "load_adapters"):
        return tuner.load_adapters(model, str(folder))
    npz = folder / "adapters.npz"
    return tuner.apply_lora_layers(model, str(npz if npz.exists() else folder))


def fuse(model: Any) -> Any:
    """Fuse as mlx_lm.fuse does."""
    fused = [
        (name, module.fuse() if hasattr(module, "fuse") else module.to_linear())
        for name, module in model.named_modules()
        if hasattr(module, "fuse") or hasattr(module, "to_linear")
    ]
    model.update_modules(tree_unflatten(fused))
    return model


def to_hf(model: Any) -> dict[str, np.ndarray]:
    """Return a model's weights under Hugging Face names; stacked experts come apart."""
    out = {}
    for name, value in tree_flatten(model.parameters()):
        array = np.array(value)
        if ".switch_mlp." not in name:
            out[name] = array
            continue
        stem, _, rest = name.partition(".switch_mlp.")
        for number, part in enumerate(array):
            out[f"{stem}.experts.{number}.{EXPERT[rest.split('.')[0]]}.weight"] = part
    return out


def main() -> None:
    """Write this version's cases."""
    mx.set_default_device(mx.cpu)
    version = importlib.metadata.version("mlx-lm")
    for label, case in CASES[".".join(version.split(".")[:2])].items():
        folder = fresh("mlx", label)
        make(case, label, folder)
        model = load(case.base, folder)
        logits = np.array(model(mx.array([PROBE]))[0])
        keep_logits(folder, logits)
        model = fuse(model)
        after = np.array(model(mx.array([PROBE]))[0])
        names = keep_expected(folder, case.base, to_hf(model), f"mlx-lm {version}")
        gap = float(np.abs(after - logits).max())
        say(case=label, version=version, changed=len(names), fused_against_layers=gap)


if __name__ == "__main__":
    main()
