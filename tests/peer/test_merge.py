"""Our merge equals PEFT's own merge carried out in fp64 and rounded once, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="the peer library transformers is not installed")
pytest.importorskip("peft", reason="the peer library peft is not installed")

import peft
import torch
from transformers import AutoConfig

import adaptertools

from . import oracle, zoo
from .adapters import (
    ATTENTION,
    EXPERTS,
    GPT2_LINEARS,
    MLP,
    Made,
    Variant,
    build,
    edit_config,
    experts,
    ia3,
    lora,
    randomise,
    save_base,
)
from .bases import BASES, DTYPES, read_config, read_tensors
from .convnet import ConvNet

pytestmark = pytest.mark.peer

LLAMA_LINEARS = ATTENTION + MLP
IA3_LLAMA = ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"])
LORA_LLAMA = lora(LLAMA_LINEARS, r=3)
LORA_OTHER = lora(["q_proj", "v_proj", "down_proj"], r=5, use_rslora=True)
LORA_GPT2 = lora(GPT2_LINEARS, r=3, lora_bias=True)
IA3_GPT2 = ia3(["c_attn", "mlp.c_proj"], ["mlp.c_proj"])
LORA_BERT = lora(["query", "dense"], r=3, lora_bias=True)
# name -> base, its dtype, and the adapters with their weights, in merging order
MIXES = {
    "two-lora": ("llama", "bf16", [(LORA_LLAMA, 1), (LORA_OTHER, 1)]),
    "two-lora-f32": ("llama", "f32", [(LORA_LLAMA, 1), (LORA_OTHER, 1)]),
    "weighted": ("llama", "bf16", [(LORA_LLAMA, 0.7), (LORA_OTHER, -0.4)]),
    "one-weighted": ("llama", "f16", [(LORA_LLAMA, 0.3)]),
    "three-lora": ("llama", "bf16", [(LORA_LLAMA, 1), (LORA_OTHER, 0.5), (LORA_LLAMA, -1.25)]),
    "lora-then-ia3": ("llama", "bf16", [(LORA_LLAMA, 1), (IA3_LLAMA, 1)]),
    "ia3-then-lora": ("llama", "bf16", [(IA3_LLAMA, 1), (LORA_LLAMA, 1)]),
    "lora-between-ia3": ("llama", "f16", [(IA3_LLAMA, 1), (LORA_LLAMA, 0.5), (IA3_LLAMA, 1)]),
    "two-ia3": ("llama", "bf16", [(IA3_LLAMA, 1), (IA3_LLAMA, 1)]),
    "conv1d-lora-then-ia3": ("gpt2", "bf16", [(LORA_GPT2, 1), (IA3_GPT2, 1)]),
    "conv1d-ia3-then-lora": ("gpt2", "f32", [(IA3_GPT2, 1), (LORA_GPT2, 0.5)]),
    "two-lora-bias": ("bert", "bf16", [(LORA_BERT, 0.5), (LORA_BERT, 1)]),
    "experts-and-attention": (
        "qwen-moe",
        "bf16",
        [(experts(*EXPERTS), 0.5), (LORA_OTHER, 1), (experts(EXPERTS[1]), 1)],
    ),
    "replaced-head": (
        "llama",
        "bf16",
        [(lora(["q_proj"], modules_to_save=["lm_head"]), 1), (LORA_LLAMA, 1)],
    ),
}


def merge(made: Made, out: Path, **options: object) -> dict[str, torch.Tensor]:
    """Merge a built variant with our library and read the result."""
    adaptertools.merge(made.base, made.adapter, out, **options)
    return read_tensors(out)


def exact(made: Made, scratch: Path) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """PEFT's fp64 merge of a built variant: its tensors, and the model that holds them."""
    model = oracle.merge(made.model(), [(made.original, 1.0)])
    return BASES[made.variant.base].tensors(model, scratch), model


def output(made: Made, root: Path) -> Path:
    return root / ("merged.safetensors" if made.base.is_file() else "merged")


@pytest.mark.parametrize("name", zoo.VARIANTS)
def test_merge_equals_peft(name: str, tmp_path: Path) -> None:
    variant = zoo.VARIANTS[name]
    made = build(name, variant, tmp_path)
    out = output(made, tmp_path)
    got = merge(made, out)
    wanted, model = exact(made, tmp_path / "scratch")
    base = read_tensors(made.base)
    oracle.check_checkpoint(got, base, wanted, variant.rename, variant.base_only)
    if out.is_dir():
        ours = AutoConfig.from_pretrained(out).get_text_config()
        theirs = model.config.get_text_config()
        assert ours.vocab_size == theirs.vocab_size
        assert ours.tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("lora", "f32"), ("dora", "f32"), ("ia3", "f16"), ("lora-f32", "bf16"), ("conv", "f16")],
)
def test_merge_into_another_dtype(name: str, dtype: str, tmp_path: Path) -> None:
    made = build(name, zoo.VARIANTS[name], tmp_path)
    got = merge(made, output(made, tmp_path), dtype=dtype, compute_dtype="f64")
    wanted, _ = exact(made, tmp_path / "scratch")
    oracle.check_checkpoint(got, read_tensors(made.base), wanted, dtype=DTYPES[dtype])


@pytest.mark.parametrize("name", MIXES)
def test_several_adapters_round_once(name: str, tmp_path: Path) -> None:
    base, dtype, parts = MIXES[name]
    made = [
        build(f"{name}-{number}", Variant(base, config, dtype), tmp_path)
        for number, (config, _) in enumerate(parts)
    ]
    adapters = [(one.adapter, weight) for one, (_, weight) in zip(made, parts, strict=True)]
    given = [path if weight == 1 else (path, weight) for path, weight in adapters]
    adaptertools.merge(made[0].base, given, tmp_path / "merged")
    model = oracle.merge(made[0].model(), adapters)
    wanted = BASES[base].tensors(model, tmp_path / "scratch")
    oracle.check_checkpoint(read_tensors(tmp_path / "merged"), read_tensors(made[0].base), wanted)


def test_saved_embeddings_of_two_adapters_add_up(tmp_path: Path) -> None:
    """PEFT saves the base's embedding beside each LoRA on it: no copy may undo the other delta."""
    variant = Variant("llama", lora(["embed_tokens", "q_proj"]))
    made = [build(name, variant, tmp_path) for name in "ab"]
    saved = "base_model.model.model.embed_tokens.base_layer.weight"
    assert all(saved in read_tensors(one.adapter) for one in made)
    adaptertools.merge(made[0].base, [one.adapter for one in made], tmp_path / "merged")
    wrapped = oracle.load_adapter(made[0].model(), made[0].original)
    wrapped.load_adapter(made[1].original, "second", autocast_adapter_dtype=False)
    wrapped.double().base_model.set_adapter(["default", "second"])
    wanted = BASES["llama"].tensors(wrapped.merge_and_unload(), tmp_path / "scratch")
    oracle.check_checkpoint(read_tensors(tmp_path / "merged"), read_tensors(made[0].base), wanted)


def inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """One fixed input a model understands."""
    if isinstance(getattr(model, "base_model", model), peft.LoraModel):
        model = model.get_base_model()
    if isinstance(model, ConvNet):
        image = torch.linspace(-1, 1, 4 * 6**3, dtype=torch.float64).sin()
        return {"ids": torch.tensor([[3, 9, 1, 29]]), "image": image.reshape(4, 6, 6, 6)}
    return {"input_ids": torch.arange(3, 20)[None]}


@torch.no_grad()
def forward(model: torch.nn.Module) -> torch.Tensor:
    result = model(**inputs(model))
    return getattr(result, "logits", result)


@pytest.mark.parametrize("name", zoo.UNMERGED)
def test_merge_equals_the_unmerged_model(name: str, tmp_path: Path) -> None:
    """Where PEFT's merge is not what PEFT trained, what it trained is the judge."""
    made = build(name, zoo.UNMERGED[name], tmp_path)
    out = output(made, tmp_path)
    merge(made, out)
    plain = forward(made.model())
    trained = forward(oracle.load_adapter(made.model(), made.original))
    merged = forward(made.model(path=out))
    assert (trained - plain).abs().max() > 1e-2
    torch.testing.assert_close(merged, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tied"),
    [("tied-embedding-only", False), ("tied-head-only", False), ("tied-both-alike", True)],
)
def test_tied_embeddings_part_only_where_they_differ(name: str, tied: bool, tmp_path: Path) -> None:
    made = build(name, zoo.UNMERGED[name], tmp_path)
    got = merge(made, tmp_path / "merged")
    assert read_config(tmp_path / "merged")["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in got) is not tied


def test_named_adapter_lies_in_a_subfolder(tmp_path: Path) -> None:
    variant = zoo.VARIANTS["lora"]
    base = save_base(variant.base, variant.dtype, tmp_path)
    model = BASES[variant.base].load(base, torch.float32)
    wrapped = peft.get_peft_model(model, variant.config(), adapter_name="style")
    randomise(wrapped, 8)
    wrapped.save_pretrained(tmp_path / "adapter")
    assert sorted(entry.name for entry in (tmp_path / "adapter").iterdir() if entry.is_dir()) == [
        "style"
    ]
    folder = tmp_path / "adapter" / "style"
    made = Made(variant, base, folder, folder)
    got = merge(made, tmp_path / "merged")
    wanted, _ = exact(made, tmp_path / "scratch")
    oracle.check_checkpoint(got, read_tensors(base), wanted)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_residual_base_takes_the_adapter(init: str, tmp_path: Path) -> None:
    """PiSSA and OLoRA change the base at their start: what they leave is the base to merge into."""
    pristine = save_base("llama", "f32", tmp_path)
    model = BASES["llama"].load(pristine, torch.float32)
    wrapped = peft.get_peft_model(model, lora(ATTENTION, init_lora_weights=init)())
    randomise(wrapped, 9)
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.unload().save_pretrained(tmp_path / "residual")
    changed = read_tensors(tmp_path / "residual")
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(changed[query], read_tensors(pristine)[query])
    adaptertools.merge(
        tmp_path / "residual", tmp_path / "adapter", tmp_path / "merged", residual_base=True
    )
    edit_config(tmp_path / "adapter", init_lora_weights=True)
    residual = BASES["llama"].load(tmp_path / "residual", torch.float64)
    model = oracle.merge(residual, [(tmp_path / "adapter", 1.0)])
    wanted = BASES["llama"].tensors(model, tmp_path / "scratch")
    oracle.check_checkpoint(read_tensors(tmp_path / "merged"), changed, wanted)
