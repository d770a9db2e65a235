"""What we write, judged by the peers' own loaders: each runs in an environment of its own.

`ADAPTERTOOLS_PEERS` names the folder that holds these environments (`tests/peer/golden/MANIFEST.md`
says how to make them); without it the tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import adaptertools

GOLDEN = Path(__file__).parent / "golden"
PEERS = Path(os.environ.get("ADAPTERTOOLS_PEERS", "."))
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif("ADAPTERTOOLS_PEERS" not in os.environ, reason="no ADAPTERTOOLS_PEERS"),
]
LINEAR, EVEN = "gguf/linear", "torchtune/all"
# format, the peer's environment, its judge, source, base, what the judge needs beside
CASES = [
    ("mlx-lora", "mlx", "judge_mlx.py", LINEAR, "base-llama", None),
    ("mlx-lora", "mlx", "judge_mlx.py", EVEN, "base-llama-even", None),
    ("mlx-lora", "mlx", "judge_mlx.py", "torchtune/dora", "base-llama-even", None),
    ("litgpt", "litgpt", "judge_litgpt.py", LINEAR, "base-llama", None),
    ("litgpt", "litgpt", "judge_litgpt.py", EVEN, "base-llama-even", None),
    ("gguf-lora", "llamacpp", "judge_llamacpp.py", LINEAR, "base-llama", "llamacpp/src"),
    (
        "gguf-lora",
        "llamacpp",
        "judge_llamacpp.py",
        "gguf/rank-pattern",
        "base-llama",
        "llamacpp/src",
    ),
    ("torchtune", "torchtune", "judge_torchtune.py", EVEN, "base-llama-even", None),
    ("torchtune", "torchtune", "judge_torchtune.py", "torchtune/dora", "base-llama-even", None),
    ("nemo-lora", "torchtune", "judge_nemo.py", EVEN, "base-llama-even", "nemo"),
    ("nemo-canonical-lora", "torchtune", "judge_nemo.py", EVEN, "base-llama-even", "nemo"),
    *(
        (f"adapterhub-{name[-4:].lstrip('-')}", "adapters", "judge_adapters.py", name, base, None)
        for name, base in (
            ("adapters/llama-lora", "base-llama"),
            ("adapters/llama-ia3", "base-llama"),
            ("adapters/bert-lora", "base-bert"),
            ("adapters/bert-ia3", "base-bert"),
            ("adapters/t5-lora", "base-t5"),
            ("adapters/t5-ia3", "base-t5"),
        )
    ),
]


def source_of(case: str) -> Path:
    """Return the file or folder of a golden case."""
    folder = GOLDEN / case
    if (folder / "peft").is_dir():
        return folder / "peft"
    native = folder / "adapter_model.pt"
    return native if native.is_file() else folder


def without_head(peft: Path, expected: Path, place: Path) -> Path:
    """Leave the head out of an adapter and of what is expected: NeMo has no name for it."""
    path = peft / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "lm_head" not in k}, path)
    config = json.loads((peft / "adapter_config.json").read_text())
    config["target_modules"] = [m for m in config["target_modules"] if m != "lm_head"]
    (peft / "adapter_config.json").write_text(json.dumps(config))
    kept = {k: v for k, v in load_file(expected).items() if "lm_head" not in k}
    save_file(kept, place / "expected.safetensors")
    return place / "expected.safetensors"


@pytest.mark.parametrize(
    ("to", "peer", "judge", "case", "base", "beside"),
    CASES,
    ids=lambda v: str(v).rpartition("/")[2],
)
def test_the_peer_loads_what_we_write(
    to: str, peer: str, judge: str, case: str, base: str, beside: str | None, tmp_path: Path
) -> None:
    """By way of PEFT, the peer's model means the same as it did for its own golden file."""
    method = "peft-ia3" if to.endswith("ia3") else "peft-lora"
    config, expected = GOLDEN / base, GOLDEN / case / "expected.safetensors"
    adaptertools.convert(source_of(case), method, tmp_path / "peft", base=config)
    if to.startswith("nemo"):
        expected = without_head(tmp_path / "peft", expected, tmp_path)
    written = adaptertools.convert(tmp_path / "peft", to, tmp_path / "out", base=config)
    place = tmp_path / "out" / written.plan.file if written.plan.spec.write.get("inside") else None
    if to == "gguf-lora":
        place = tmp_path / "out" / "adapter.gguf"
    more = [str(PEERS / beside)] if beside else []
    command = [PEERS / peer / "bin" / "python", GOLDEN / judge, place or tmp_path / "out", expected]
    done = subprocess.run(
        [*map(str, command), *more, "--base", base], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    verdict = json.loads(done.stdout.strip().splitlines()[-1])
    assert verdict.get("weights", 0.0) < 2e-6, verdict
    assert verdict.get("logits", 0.0) < 4e-5, verdict
    assert max(verdict.get("weights_moved", 0.0), verdict.get("logits_moved", 0.0)) > 0.1, verdict
