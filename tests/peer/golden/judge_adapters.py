"""Judge an AdapterHub adapter folder with `adapters`' own loader. Run with its Python."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from cases import asked, difference, judge_weights, say, write_merged
from make_adapters import merged_values, model_of, output_of
from safetensors.torch import load_file


def main() -> None:
    """Load strictly (nothing unknown, nothing left as it was), compare outputs and weights."""
    given = asked(__doc__)
    name = json.loads((given.adapter / "adapter_config.json").read_text())["name"]
    path = given.adapter / "adapter.safetensors"
    if safetensors := path.exists():
        state = load_file(path)
    else:
        state = torch.load(given.adapter / "pytorch_adapter.bin", weights_only=True)
    model = model_of(given.base)
    more = {"with_head": False, "use_safetensors": safetensors}
    model.load_adapter(str(given.adapter), set_active=True, **more)
    made = {key: value for key, value in model.state_dict().items() if f".loras.{name}." in key}
    if set(made) != set(state):
        raise SystemExit(f"not stored: {set(made) - set(state)}, extra: {set(state) - set(made)}")
    if unread := [key for key in made if not torch.equal(made[key], state[key].to(made[key]))]:
        raise SystemExit(f"not read: {unread}")
    with tempfile.TemporaryDirectory() as scratch:
        reference = model_of(write_merged(given.base, given.expected, Path(scratch)))
    wanted = output_of(reference)
    gap = difference(output_of(model), wanted)
    moved = difference(output_of(model_of(given.base)), wanted)
    weights = judge_weights(given.base, given.expected, merged_values(model, name, given.base))
    say(peer="adapters", logits=gap, logits_moved=moved, tensors=len(state), **weights)


if __name__ == "__main__":
    main()
