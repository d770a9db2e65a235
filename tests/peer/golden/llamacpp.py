"""llama.cpp at work: its converter for a base without a tokenizer, and its runtime's logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

CONVERT = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import gguf, torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
base = Path(sys.argv[2])
name = get_model_architecture(ModelBase.load_hparams(base, False), ModelType.TEXT)
kind = get_model_class(name)
class NoVocabulary(kind):
    model_arch = kind.model_arch
    def set_vocab(self):
        self._set_vocab_none()
    def set_gguf_parameters(self):
        super().set_gguf_parameters()
        if not any("vocab_size" in key for part in self.gguf_writer.kv_data for key in part):
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
with torch.inference_mode():
    NoVocabulary(base, gguf.LlamaFileType.ALL_F32, Path(sys.argv[3])).write()
"""


def base_gguf(tree: Path, base: Path, out: Path) -> Path:
    """Convert a base with llama.cpp's own classes; only its vocabulary is left out."""
    command = [sys.executable, "-c", CONVERT, str(tree), str(base), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def logits_of(base: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    """Return llama.cpp's logits, [tokens, vocabulary]."""
    import llama_cpp

    lora = str(adapter) if adapter else None
    model = llama_cpp.Llama(
        str(base), lora_path=lora, logits_all=True, type_k=0, type_v=0, n_ctx=64, verbose=False
    )
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], dtype=np.float32)
    model.close()
    return logits
