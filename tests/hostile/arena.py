"""A place where good inputs are spoiled and the answer to them is judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    Tensors,
    decode,
    encode,
    read_checkpoint,
    read_config,
    read_safetensors,
    tiny_base,
    tiny_lora,
    write_json,
    write_safetensors,
)

import adaptertools

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"
A0 = f"{PREFIX}{Q0}.lora_A.weight"
B0 = f"{PREFIX}{Q0}.lora_B.weight"
Edit = Callable[[Tensors], object]
CODE = re.compile(r"AT\d{3}\Z")
TIMEOUT = 60
STEPS = {"BF16": (2.0**-7.99, 1e-9), "F16": (2.0**-10.9, 3e-8), "F32": (1e-6, 1e-8)}


@dataclass(frozen=True)
class Result:
    """What a command of the tool answered."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def error(self) -> dict[str, Any]:
        """The `error` object of a `--json` answer: the only document on stdout."""
        return json.loads(self.out)["error"]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child: this repository first, no debug switch."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **changes}
    env.pop("ADAPTERTOOLS_DEBUG", None)
    return env


def command(*arguments: object) -> list[str]:
    """Return the command line of the tool."""
    return [sys.executable, "-m", "adaptertools", *(os.fspath(str(part)) for part in arguments)]


def cli(*arguments: object, timeout: float = TIMEOUT, **options: Any) -> Result:
    """Run the tool in a child and check what holds for every answer."""
    options.setdefault("env", environment())
    done = subprocess.run(
        command(*arguments), capture_output=True, timeout=timeout, check=False, **options
    )
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    result = Result(done.returncode, out, err)
    assert "Traceback" not in result.text, result.text
    assert result.code in {0, 1, 2, 130}, (result.code, result.text)
    bare = re.sub(r"[\n\t]", "", result.text)
    raw = sorted({char for char in bare if not char.isprintable() and char != "\ufffd"})
    assert not raw, f"raw control characters {raw}: {result.text!r}"
    return result


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Return every path below `root` with size and time of change: equal means untouched."""
    found = {}
    for path in root.rglob("*"):
        stat = path.lstat()
        size, time = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        found[str(path.relative_to(root))] = (size, time)
    return found


def escaped(text: str) -> str:
    """Return `text` as a terminal may see it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def assert_sentence(message: str) -> None:
    """A message is one printable line that a person can read to the end."""
    assert message.strip(), "an error without a message"
    assert "\n" not in message, message
    assert message.isprintable(), repr(message)
    assert len(message) < 800, message


def assert_places(error: dict[str, Any], file: str | None, key: str | None) -> None:
    """The error names the file and, where there is one, the key it is about."""
    said = f"{error['where']['file']} {error['where']['key']} {error['message']}"
    if file is not None:
        assert file in said, f"{file} is not named: {error}"
    if key is not None:
        assert key in said or escaped(key) in said, f"{key} is not named: {error}"


@dataclass
class Arena:
    """A directory with a base, an adapter and a place for the output."""

    root: Path
    base: Path
    adapter: Path
    out: Path

    @classmethod
    def make(cls, root: Path, **sizes: Any) -> Arena:
        base = tiny_base(root / "base", **sizes)
        return cls(root, base, tiny_lora(root / "adapter", base), root / "out")

    # --- spoiling -------------------------------------------------------------------------------

    @property
    def weights(self) -> Path:
        return self.adapter / "adapter_model.safetensors"

    @property
    def model(self) -> Path:
        return self.base / "model.safetensors"

    def edit_weights(self, edit: Edit) -> None:
        """Let `edit` change the adapter's tensors in place."""
        tensors = read_safetensors(self.weights)
        edit(tensors)
        write_safetensors(self.weights, tensors, {"format": "pt"})

    def edit_model(self, edit: Edit) -> None:
        """Let `edit` change the base's tensors in place."""
        tensors = read_safetensors(self.model)
        edit(tensors)
        write_safetensors(self.model, tensors, {"format": "pt"})

    def configure(self, **fields: Any) -> None:
        """Change fields of adapter_config.json."""
        path = self.adapter / "adapter_config.json"
        write_json(path, json.loads(path.read_text()) | fields)

    def configure_base(self, **fields: Any) -> None:
        """Change fields of the base's config.json."""
        write_json(self.base / "config.json", read_config(self.base) | fields)

    # --- judging --------------------------------------------------------------------------------

    def merge(self, **options: Any) -> Any:
        """Merge through the Python API and return its result."""
        return adaptertools.merge(self.base, [self.adapter], self.out, **options)

    def refuses(
        self, file: str | None = None, key: str | None = None, **options: Any
    ) -> adaptertools.AdapterError:
        """The merge must fail with one clear sentence and leave no trace; returns the error."""
        before = snapshot(self.root)
        with pytest.raises(adaptertools.AdapterError) as caught:
            self.merge(**options)
        assert snapshot(self.root) == before, "something was left on disk"
        error = caught.value
        assert CODE.match(error.code), error.code
        assert_sentence(str(error))
        assert_places(error.to_json(), file, key)
        return error

    def refuses_cli(
        self,
        file: str | None = None,
        key: str | None = None,
        code: int = 1,
        arguments: tuple[object, ...] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """The command must fail likewise, for people and (`--json`) for scripts."""
        verb = arguments or ("merge", self.base, self.adapter, "-o", self.out)
        before = snapshot(self.root)
        told = cli(*verb, **options)
        result = cli(*verb, "--json", **options)
        assert snapshot(self.root) == before, "something was left on disk"
        assert told.code == result.code == code, told.text + result.text
        assert told.out == "", f"stdout is for results: {told.out}"
        assert told.err.strip()
        error = result.error
        assert set(error) >= {"code", "message", "where", "hint"}
        assert CODE.match(error["code"]), error
        assert_places(error, file, key)
        return error

    def passes(self, **options: Any) -> Tensors:
        """The merge must work and be right; returns the merged tensors."""
        before = snapshot(self.root)
        self.merge(**options)
        after = snapshot(self.root)
        self.assert_only_out(before, after)
        return self.check()

    def passes_cli(self, *arguments: object, **options: Any) -> Tensors:
        """The command must work and be right; returns the merged tensors."""
        before = snapshot(self.root)
        result = cli("merge", self.base, self.adapter, "-o", self.out, *arguments, **options)
        assert result.code == 0, result.text
        self.assert_only_out(before, snapshot(self.root))
        return self.check()

    def assert_only_out(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Nothing but the output is new or changed."""
        out = str(self.out.relative_to(self.root))
        rest = {path: stat for path, stat in after.items() if path.split("/")[0] != out}
        assert rest == {path: stat for path, stat in before.items() if path != out}

    def check(self) -> Tensors:
        """Compare the output with a merge computed here, in f64: one rounding apart."""
        base, merged = read_checkpoint(self.base), read_checkpoint(self.out)
        deltas = lora_deltas(self.adapter)
        assert merged.keys() == base.keys()
        for name, tensor in merged.items():
            if name not in deltas:
                assert tensor == base[name], f"{name} is untouched but changed"
                continue
            assert tensor[:2] == base[name][:2]
            exact = decode(base[name]).astype(np.float64) + deltas.pop(name)
            relative, absolute = STEPS[tensor[0]]
            np.testing.assert_allclose(decode(tensor), exact, rtol=relative, atol=absolute)
            assert tensor[2] != base[name][2], f"{name} did not change"
        assert not deltas, f"not applied: {sorted(deltas)}"
        return merged


def lora_deltas(adapter: Path) -> dict[str, np.ndarray]:
    """Return the weight differences of a plain LoRA by the base's names, in f64."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = read_safetensors(adapter / "adapter_model.safetensors")
    deltas = {}
    for key in tensors:
        if ".lora_A." in key:
            down = decode(tensors[key]).astype(np.float64)
            up = decode(tensors[key.replace(".lora_A.", ".lora_B.")]).astype(np.float64)
            name = key.removeprefix(PREFIX).replace(".lora_A.", ".")
            deltas[name] = config["lora_alpha"] / len(down) * up @ down
    return deltas


def put(key: str, values: np.ndarray) -> Edit:
    """Return an edit that stores `values` (f32) under a key."""
    return lambda tensors: tensors.__setitem__(key, encode(values, "F32"))
