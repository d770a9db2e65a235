"""GGUF adapters: PEFT adapters converted by llama.cpp's own convert_lora_to_gguf.py.

Run: PYTHON make_gguf.py LLAMA_CPP, where LLAMA_CPP is llama.cpp's source tree, and PYTHON has peft,
transformers, torch and llama-cpp-python. With transformers 4 it makes the Mixtral case instead, as
its experts are separate linear layers there, which is the only form the converter takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from cases import HERE, PROBE, difference, fresh, keep_expected, keep_logits, numbers, say
from llamacpp import base_gguf, logits_of
from peft import LoraConfig, PeftModel, get_peft_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# case → base, PEFT settings
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("base-llama", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "embeddings": (
        "base-llama",
        {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    ),
    "qwen2": (
        "base-qwen2",
        {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    ),
    "rank-pattern": (
        "base-llama",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"k_proj": 2},
            "layers_to_transform": [1],
        },
    ),
}
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": (
        "base-mixtral",
        {"r": 3, "lora_alpha": 7, "target_modules": ["w1", "w2", "w3", "gate", "k_proj"]},
    ),
}
OUTTYPES = {"linear": ["f32", "f16", "bf16", "q8_0"]}


def model_of(base: str) -> transformers.PreTrainedModel:
    """Return a base in fp32."""
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(HERE / base, dtype=torch.float32).eval()


def make_peft(case: str, base: str, settings: dict[str, Any]) -> PeftModel:
    """Save a PEFT adapter with random weights everywhere, and what PEFT merges it to."""
    folder = fresh("gguf", case)
    model = get_peft_model(model_of(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.from_numpy(numbers(f"gguf/{case}/{name}", value.shape, 0.18)))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder / "peft", save_embedding_layers=False)
    (folder / "peft" / "README.md").unlink()
    path = folder / "peft" / "adapter_config.json"
    about = json.loads(path.read_text())
    about["target_modules"].sort()  # PEFT keeps a set
    path.write_text(json.dumps(about, indent=2, sort_keys=True))
    merged = model.merge_and_unload().eval()
    values = {name: value.numpy() for name, value in merged.state_dict().items()}
    keep_expected(folder, HERE / base, values, f"peft {peft.__version__} and llama.cpp")
    return merged


def main() -> None:
    """Write every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path)
    tree = parser.parse_args().llama_cpp
    modern = int(transformers.__version__.split(".")[0]) >= 5
    for case, (base, settings) in (ADAPTERS if modern else EXPERTS).items():
        merged = make_peft(case, base, settings)
        folder = HERE / "gguf" / case
        with torch.no_grad():
            by_peft = merged(torch.tensor([PROBE])).logits[0].numpy()
        for outtype in OUTTYPES.get(case, ["f32"]):
            out = folder / f"adapter-{outtype}.gguf"
            command = [tree / "convert_lora_to_gguf.py", "--base", HERE / base]
            command += ["--outtype", outtype, "--outfile", out, folder / "peft"]
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            with tempfile.TemporaryDirectory() as scratch:
                plain = base_gguf(tree, HERE / base, Path(scratch) / "base.gguf")
                logits = logits_of(plain, PROBE, out)
                gap = difference(logits_of(plain, PROBE), logits)
            if outtype == "f32":
                keep_logits(folder, logits)
            say(case=case, out=outtype, peft=difference(logits, by_peft), moved=gap)


if __name__ == "__main__":
    main()
