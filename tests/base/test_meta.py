"""Bases in Meta's layout: merged there, they are what a merge into the HF base is, bit for bit."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from builders import (
    IA3_CONFIG,
    LINEARS,
    LORA_CONFIG,
    Tensors,
    base_tensors,
    encode,
    ia3_tensors,
    linear_shape,
    llama_config,
    lora_tensors,
    module_path,
    read_checkpoint,
    write_adapter,
    write_base,
)
from test_architecture import command, loaded

import adaptertools
from adaptertools.errors import AdapterError

from .edits import files_of
from .metafiles import as_torch, read_meta, shards_of, write_meta

LAYERS = 2
# MP, query heads, key/value heads; the last cuts inside heads, which the rows do not mind
MODELS = [(1, 8, 2), (2, 8, 2), (8, 16, 8), (8, 8, 2)]
HEAD_DIM = 16
PREFIX = "base_model.model."


class World:
    """One model in both layouts, in ordinary HF terms and cut into `mp` files."""

    def __init__(
        self,
        root: Path,
        mp: int = 2,
        heads: int = 8,
        kv_heads: int = 2,
        dtype: str = "BF16",
        *,
        biases: bool = False,
    ) -> None:
        self.root, self.mp = root, mp
        self.config = llama_config(LAYERS, heads * HEAD_DIM, heads, kv_heads, 96, 176, dtype)
        self.tensors: Tensors = base_tensors(self.config, dtype)
        if biases:
            self.config["attention_bias"] = True
            rng = np.random.default_rng(9)
            for name in [f"{module_path(n, p)}" for n in range(LAYERS) for p in LINEARS[:4]]:
                size = self.tensors[f"{name}.weight"][1][0]
                self.tensors[f"{name}.bias"] = encode(rng.standard_normal(size), dtype)
        self.hf = write_base(root / "hf", self.config, self.tensors)
        self.meta = write_meta(root / "meta", self.tensors, self.config, mp)

    def lora(self, tensors: Tensors, **config: Any) -> Path:
        """Write a LoRA of rank 4 and scale 2."""
        usual = LORA_CONFIG | {"r": 4, "lora_alpha": 8, "target_modules": list(LINEARS)}
        return write_adapter(self.root / "adapter", usual | config, tensors)

    def both(self, adapter: Any, **options: Any) -> tuple[dict[str, Any], Tensors]:
        """Merge into both; return the Meta one in HF terms, and the HF one."""
        adaptertools.merge(self.hf, adapter, self.root / "out-hf", **options)
        adaptertools.merge(self.meta, adapter, self.root / "out", **options)
        return self.back(), read_checkpoint(self.root / "out-hf")

    def back(self) -> dict[str, Any]:
        return read_meta(self.root / "out", self.tensors, self.config)

    def assert_same(self, adapter: Any, changed: int | None = None, **options: Any) -> None:
        """Assert that both merges are the same bits, and how many tensors they change."""
        ours, theirs = self.both(adapter, **options)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name] == tensor, name
        found = sum(theirs[name] != tensor for name, tensor in self.tensors.items())
        assert found == (len(self.tensors) if changed is None else changed)


def full_lora(world: World) -> Tensors:
    """Return a LoRA of every linear, the head and the embedding."""
    tensors = lora_tensors(world.config, targets=LINEARS)
    rng = np.random.default_rng(3)
    vocab, hidden = world.config["vocab_size"], world.config["hidden_size"]
    for key, shape in {
        f"{PREFIX}lm_head.lora_A.weight": (4, hidden),
        f"{PREFIX}lm_head.lora_B.weight": (vocab, 4),
        f"{PREFIX}model.embed_tokens.lora_embedding_A": (4, vocab),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": (hidden, 4),
    }.items():
        tensors[key] = encode(rng.standard_normal(shape) * 0.05, "F32")
    return tensors


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize(("mp", "heads", "kv_heads"), MODELS)
def test_lora(tmp_path: Path, mp: int, heads: int, kv_heads: int, dtype: str) -> None:
    """Every linear, the embedding and the head: the same bits as the merge in the HF layout."""
    world = World(tmp_path, mp, heads, kv_heads, dtype)
    norms = 2 * LAYERS + 1
    world.assert_same(world.lora(full_lora(world)), len(world.tensors) - norms)


@pytest.mark.parametrize(("mp", "heads", "kv_heads"), MODELS)
def test_ia3(tmp_path: Path, mp: int, heads: int, kv_heads: int) -> None:
    """Output vectors follow permuted and cut rows and scale the bias; input vectors are cut."""
    world = World(tmp_path, mp, heads, kv_heads, biases=True)
    adapter = write_adapter(tmp_path / "adapter", IA3_CONFIG, ia3_tensors(world.config))
    world.assert_same(adapter, LAYERS * 5)


@pytest.mark.parametrize(("mp", "heads", "kv_heads"), MODELS)
def test_full_values(tmp_path: Path, mp: int, heads: int, kv_heads: int) -> None:
    """Saved modules, trained biases and norms; the embedding's value is cut along its columns."""
    world = World(tmp_path, mp, heads, kv_heads, biases=True)
    rng = np.random.default_rng(5)
    tensors = lora_tensors(world.config)
    saved = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
    saved += [name for name in world.tensors if name.endswith(".bias")]
    for name in saved:
        values = rng.standard_normal(world.tensors[name][1])
        tensors[PREFIX + name] = encode(values, "F32")
    modules = ["embed_tokens", "lm_head", "norm"]
    adapter = world.lora(tensors, bias="all", modules_to_save=modules)
    world.assert_same(adapter, 2 * LAYERS + 3 + 4 * LAYERS)


@pytest.mark.parametrize(("mp", "heads", "kv_heads"), MODELS)
def test_lora_bias_and_weights(tmp_path: Path, mp: int, heads: int, kv_heads: int) -> None:
    """`lora_bias` goes to cut and to replicated biases; an adapter's weight counts once."""
    world = World(tmp_path, mp, heads, kv_heads, biases=True)
    rng = np.random.default_rng(6)
    targets = LINEARS[:4]
    tensors = lora_tensors(world.config, targets=targets)
    for path in [module_path(n, p) for n in range(LAYERS) for p in targets]:
        size = world.tensors[f"{path}.bias"][1]
        tensors[f"{PREFIX}{path}.lora_B.bias"] = encode(rng.standard_normal(size), "F32")
    adapter = world.lora(tensors, lora_bias=True, target_modules=list(targets))
    world.assert_same([(adapter, 0.5)], LAYERS * 8)


@pytest.mark.parametrize("mp", [1, 2])
def test_token_rows(tmp_path: Path, mp: int) -> None:
    """Trained token rows: whole columns of the embedding, and rows of one file of the head."""
    world = World(tmp_path, mp)
    hidden = world.config["hidden_size"]
    tensors = lora_tensors(world.config)
    rows = np.random.default_rng(7).standard_normal((3, hidden))
    for module in ("model.embed_tokens", "lm_head"):
        key = f"{PREFIX}{module}.token_adapter.trainable_tokens_delta"
        tensors[key] = encode(rows, "F32")
    indices = {"embed_tokens": [1, 50, 90], "lm_head": [2, 3, 95]}
    adapter = world.lora(tensors, trainable_token_indices=indices)
    world.assert_same(adapter, 2 * LAYERS + 2)


def dora(world: World, targets: tuple[str, ...]) -> Path:
    """Write a DoRA adapter of some linears."""
    tensors = lora_tensors(world.config, targets=targets)
    rng = np.random.default_rng(8)
    for path in [module_path(n, p) for n in range(LAYERS) for p in targets]:
        size = world.tensors[f"{path}.weight"][1][0]
        key = f"{PREFIX}{path}.lora_magnitude_vector"
        tensors[key] = encode(1 + rng.random(size), "F32")
    return world.lora(tensors, use_dora=True, target_modules=list(targets))


def test_dora_of_cut_rows(tmp_path: Path) -> None:
    """A norm is of a whole row, which lies in one file where rows are cut."""
    world = World(tmp_path)
    world.assert_same(dora(world, ("q_proj", "k_proj", "up_proj")), LAYERS * 3)


def test_dora_in_one_file(tmp_path: Path) -> None:
    """With one file nothing is cut."""
    world = World(tmp_path, 1)
    world.assert_same(dora(world, ("o_proj", "down_proj")), LAYERS * 2)


def test_dora_of_cut_columns_is_refused(tmp_path: Path) -> None:
    """A row that lies across files has no norm in any of them."""
    world = World(tmp_path)
    adapter = dora(world, ("q_proj", "down_proj"))
    refused(world, adapter, "AT415", "down_proj")


def refused(world: World, adapter: Any, code: str, told: str = "", **options: Any) -> AdapterError:
    """Assert that a merge fails with a code and leaves nothing."""
    before = {p: p.read_bytes() for p in world.meta.rglob("*") if p.is_file()}
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(world.meta, adapter, world.root / "out", **options)
    codes = {f.id for f in getattr(caught.value, "findings", ())} | {caught.value.code}
    assert code in codes, caught.value
    assert told in str(caught.value)
    assert not [p.name for p in world.root.iterdir() if "out" in p.name]
    assert before == {p: p.read_bytes() for p in world.meta.rglob("*") if p.is_file()}
    return caught.value


def members_of(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return every member of a zip: where its header is, its checksum, and its bytes."""
    with zipfile.ZipFile(path) as archive:
        return {i.filename: (i.header_offset, i.CRC, archive.read(i)) for i in archive.infolist()}


@pytest.mark.parametrize("mp", [1, 2])
def test_the_files_stay_archives(tmp_path: Path, mp: int) -> None:
    """Sizes and places stay, checksums are right everywhere, untouched members keep their bytes."""
    world = World(tmp_path, mp)
    adaptertools.merge(world.meta, world.lora(lora_tensors(world.config)), tmp_path / "out")
    for before in sorted(world.meta.glob("*.pth")):
        after = tmp_path / "out" / before.name
        assert after.stat().st_size == before.stat().st_size
        with zipfile.ZipFile(after) as archive:
            assert archive.testzip() is None
        old, new = members_of(before), members_of(after)
        assert list(old) == list(new)
        changed = [name for name in old if old[name] != new[name]]
        assert len(changed) == 2 * LAYERS
        assert all(old[name][0] == new[name][0] for name in old)
        descriptors(after)


def descriptors(path: Path) -> None:
    """Assert that what stands behind each member's data repeats the directory's checksum."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            at = info.header_offset
            name, extra = (int.from_bytes(data[at + n : at + n + 2], "little") for n in (26, 28))
            end = at + 30 + name + extra + info.file_size
            assert info.flag_bits & 8
            assert data[end : end + 4] == b"PK\x07\x08"
            assert int.from_bytes(data[end + 4 : end + 8], "little") == info.CRC


def test_checksums_in_local_headers(tmp_path: Path) -> None:
    """An archive of another writer has its checksums before the data."""
    world = World(tmp_path, 1)
    path = world.meta / "consolidated.00.pth"
    again = tmp_path / "again.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    again.replace(path)
    adapter = world.lora(lora_tensors(world.config))
    world.assert_same(adapter, 2 * LAYERS)
    with zipfile.ZipFile(tmp_path / "out" / path.name) as archive:
        assert archive.testzip() is None


def rewritten(world: World, change: Any) -> None:
    """Save the first file of the Meta folder again, with its tensors changed."""
    shard = shards_of(as_torch(world.tensors), world.config, world.mp)[0]
    change(shard)
    torch.save(shard, world.meta / "consolidated.00.pth")


def joined(shard: dict[str, torch.Tensor]) -> None:
    """Put all 16-bit tensors into one storage, one after another."""
    names = [n for n, t in shard.items() if t.dtype == torch.bfloat16]
    whole = torch.cat([shard[name].reshape(-1) for name in names])
    at = 0
    for name in names:
        size = shard[name].numel()
        shard[name] = whole[at : at + size].view(shard[name].shape)
        at += size


def test_tensors_side_by_side_in_one_storage(tmp_path: Path) -> None:
    """Views that do not overlap are changed in place; their member's checksum is of all of them."""
    world = World(tmp_path)
    rewritten(world, joined)
    world.assert_same(world.lora(lora_tensors(world.config)), 2 * LAYERS)
    with zipfile.ZipFile(tmp_path / "out" / "consolidated.00.pth") as archive:
        assert archive.testzip() is None


def test_a_shared_tensor_is_refused(tmp_path: Path) -> None:
    """A change of one would be a change of both."""
    world = World(tmp_path, 1)

    def share(shard: dict[str, torch.Tensor]) -> None:
        shard["layers.1.attention.wq.weight"] = shard["layers.0.attention.wq.weight"]

    rewritten(world, share)
    refused(world, world.lora(lora_tensors(world.config)), "AT417", "shares its bytes")


def test_a_strided_tensor_is_refused(tmp_path: Path) -> None:
    """What is no range of bytes cannot be changed in place; one that stays is no matter."""
    world = World(tmp_path, 1)

    def stride(name: str, shard: dict[str, torch.Tensor]) -> None:
        shard[name] = shard[name].T.contiguous().T

    rewritten(world, lambda shard: stride("layers.0.attention.wo.weight", shard))
    world.assert_same(world.lora(lora_tensors(world.config)), 2 * LAYERS)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out-hf")
    rewritten(world, lambda shard: stride("layers.0.attention.wq.weight", shard))
    refused(world, world.lora(lora_tensors(world.config)), "AT417", "contiguous")


def test_an_adapter_in_the_rows_of_another_scheme(tmp_path: Path) -> None:
    """A GGUF adapter, whose rows are ordered as Meta's are, means the same in both layouts."""
    world = World(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    rng = np.random.default_rng(1)
    ups = {"attn_q": rng.standard_normal((128, 4)), "attn_k": rng.standard_normal((32, 4))}
    down = rng.standard_normal((4, 128)).astype(np.float32)
    for name, up in ups.items():
        writer.add_tensor(f"blk.0.{name}.weight.lora_a", down)
        writer.add_tensor(f"blk.0.{name}.weight.lora_b", up.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    world.assert_same(tmp_path / "lora.gguf", 2)
    shards = [torch.load(tmp_path / "out" / f"consolidated.0{n}.pth") for n in range(2)]
    got = torch.cat([shard["layers.0.attention.wk.weight"] for shard in shards]).double()
    before = shards_of(as_torch(world.tensors), world.config, 1)[0]["layers.0.attention.wk.weight"]
    wanted = before.double() + 2.0 * torch.from_numpy(ups["attn_k"] @ down)
    assert (got - wanted).abs().max() < wanted.abs().max() * 2**-8


def test_companions(tmp_path: Path) -> None:
    """The config and the tokenizer come along, the old files' checksums do not."""
    world = World(tmp_path)
    plan = adaptertools.merge(
        world.meta, world.lora(lora_tensors(world.config)), tmp_path / "out", dry_run=True
    )
    assert plan.left_out == ("checklist.chk",)
    adaptertools.merge(world.meta, world.lora(lora_tensors(world.config)), tmp_path / "out")
    weights = {"consolidated.00.pth", "consolidated.01.pth"}
    assert files_of(tmp_path / "out") == weights | {
        "params.json", "tokenizer.model", "adaptertools.json"
    }  # fmt: skip
    for name in ("params.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (world.meta / name).read_bytes()


def test_the_output_does_not_depend_on_threads(tmp_path: Path) -> None:
    """The same bytes with one thread and with four."""
    world = World(tmp_path)
    adapter = world.lora(full_lora(world))
    for jobs in (1, 4):
        adaptertools.merge(world.meta, adapter, tmp_path / f"out{jobs}", jobs=jobs)
    for name in files_of(tmp_path / "out1"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out4" / name).read_bytes()


def test_an_interrupted_merge_goes_on(tmp_path: Path) -> None:
    """After Ctrl-C the journal is kept, and the checksums of what was done already count."""
    from adaptertools.base.merge import Merge
    from adaptertools.base.options import make_options
    from adaptertools.errors import InterruptedMergeError

    world = World(tmp_path)
    adapter = world.lora(full_lora(world))

    class Stop:
        calls = 0

        def __call__(self, done: int, total: int) -> None:
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt

    job = Merge(world.meta, [(adapter, 1.0)], tmp_path / "out", make_options(jobs=1), Stop())
    with pytest.raises(InterruptedMergeError):
        job.run(job.plan())
    assert not (tmp_path / "out").exists()
    result = adaptertools.merge(world.meta, adapter, tmp_path / "out", jobs=1)
    assert result.resumed
    adaptertools.merge(world.meta, adapter, tmp_path / "afresh")
    for name in files_of(tmp_path / "afresh"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "afresh" / name).read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_verify(tmp_path: Path) -> None:
    """By the receipt and by the inputs; every slice is judged, a changed one is found."""
    world = World(tmp_path)
    adapter, out = world.lora(lora_tensors(world.config)), tmp_path / "out"
    adaptertools.merge(world.meta, adapter, out)
    for given in ({}, {"base": world.meta, "adapters": adapter}):
        found = adaptertools.verify(out, **given)
        assert found.ok
        assert {v.verdict for v in found.targets} == {"exact"}
        assert len(found.targets) == 2 * LAYERS * world.mp
        assert found.updates == 2 * LAYERS
    other = adaptertools.verify(out, base=world.meta, adapters=(adapter, 0.5))
    assert {v.verdict for v in other.targets} == {"other-strength"}
    shutil.copy(world.meta / "consolidated.01.pth", out)
    broken = adaptertools.verify(out)
    assert not broken.ok
    wrong = [v.name for v in broken.targets if v.verdict == "not-applied"]
    assert len(wrong) == 2 * LAYERS
    assert all(name.startswith("consolidated.01/") for name in wrong)


def test_receipt(tmp_path: Path) -> None:
    """Updates count once, however many files hold a slice of their tensor."""
    world = World(tmp_path)
    adaptertools.merge(world.meta, world.lora(lora_tensors(world.config)), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "adaptertools.json").read_text())
    assert told["summary"]["updates"] == 2 * LAYERS
    assert told["summary"]["touched"] == 2 * LAYERS * world.mp
    assert "consolidated.01/layers.1.attention.wq.weight" in told["tensors"]


def test_inspect(tmp_path: Path) -> None:
    """The layout, the family, and the sizes that params.json does not tell."""
    world = World(tmp_path)
    told = adaptertools.inspect(world.meta).to_json()
    assert (told["kind"], told["layout"], told["family"]) == ("base", "meta", "llama")
    assert told["shards"] == 2
    freqs = 8
    whole = sum(int(np.prod(shape)) for _, shape, _ in world.tensors.values())
    assert told["parameters"] == whole + freqs
    base = adaptertools.inspect(world.meta).base
    assert base.config["vocab_size"] == 96
    assert base.config["intermediate_size"] == 176


def test_one_of_the_files_stands_for_all(tmp_path: Path) -> None:
    """The base may be named by its first file."""
    world = World(tmp_path)
    adapter = world.lora(lora_tensors(world.config))
    adaptertools.merge(world.meta / "consolidated.00.pth", adapter, tmp_path / "out")
    assert (tmp_path / "out" / "consolidated.01.pth").is_file()
    assert (tmp_path / "out" / "params.json").is_file()


def test_llama_3_cuts_its_embedding_by_rows(tmp_path: Path, monkeypatch: Any) -> None:
    """The tensors' sizes tell which axis was cut, whatever the family's usual one."""
    from . import metafiles

    monkeypatch.setitem(metafiles.TOP, "model.embed_tokens", ("tok_embeddings", 0, None))
    world = World(tmp_path)
    norms = 2 * LAYERS + 1
    world.assert_same(world.lora(full_lora(world)), len(world.tensors) - norms)


REFUSALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dtype": ("AT413", "keeps the dtype", {"dtype": "f32"}),
    "shards": ("AT413", "keeps its files", {"shard_size": "1GB"}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_options_that_the_layout_cannot_have(tmp_path: Path, name: str) -> None:
    """The layout is kept: no other dtype, no other shards."""
    world = World(tmp_path)
    code, told, options = REFUSALS[name]
    refused(world, world.lora(lora_tensors(world.config)), code, told, **options)


PARAMS = {
    "huge": {"dim": 10**13, "n_heads": 1},
    "heads": {"n_heads": 0},
    "kv": {"n_kv_heads": 4},
}


def damage(world: World, name: str) -> None:
    """Break the Meta folder in one way."""
    if name == "params":
        (world.meta / "params.json").unlink()
    elif name == "gap":
        (world.meta / "consolidated.00.pth").unlink()
    elif name == "last":
        (world.meta / "consolidated.01.pth").unlink()
    elif name in PARAMS:
        path = world.meta / "params.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | PARAMS[name]))
    elif name == "odd":
        rewritten(world, lambda shard: shard.pop("layers.0.attention.wo.weight"))
    else:
        rewritten(world, lambda shard: shard.update({"norm.weight": torch.ones(3)}))


DAMAGE = {
    "params": ("AT135", "params.json"),
    "gap": ("AT133", "consolidated.00.pth is missing"),
    "last": ("AT403", "are all its files there?"),
    "odd": ("AT134", "only consolidated.01.pth"),
    "shape": ("AT134", "F32 [3]"),
    "huge": ("AT403", "no tensor is larger"),
    "heads": ("AT241", "not known"),
    "kv": ("AT403", "rows by the config"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders(tmp_path: Path, name: str) -> None:
    """Files that lack, or do not belong together, are told by name."""
    world = World(tmp_path)
    damage(world, name)
    adapter = world.lora(lora_tensors(world.config, targets=LINEARS))
    error = refused(world, adapter, DAMAGE[name][0])
    findings = getattr(error, "findings", ())
    told = f"{error} {error.hint} " + " ".join(f"{f.title} {f.hint}" for f in findings)
    assert DAMAGE[name][1] in told


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    """Sizes that do not fit, and modules that the base lacks, are all told."""
    world = World(tmp_path)
    shape = linear_shape(world.config, "q_proj")
    tensors = lora_tensors(world.config)
    path = f"{PREFIX}{module_path(0, 'q_proj')}.lora_B.weight"
    tensors[path] = encode(np.ones((shape[0] + 16, 4)), "F32")
    other = {k.replace("layers.1", "layers.7"): t for k, t in tensors.items()}
    error = refused(world, world.lora(other), "AT403")
    assert {f.id for f in error.findings} >= {"AT401", "AT403"}


def test_a_grown_vocabulary_is_refused(tmp_path: Path) -> None:
    """A file in place cannot hold more rows."""
    world = World(tmp_path)
    tensors = lora_tensors(world.config)
    hidden = world.config["hidden_size"]
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{PREFIX}{name}.weight"] = encode(np.ones((98, hidden)), "F32")
    adapter = world.lora(tensors, modules_to_save=["embed_tokens", "lm_head"])
    refused(world, adapter, "AT403")


def test_no_torch_before_computing(tmp_path: Path) -> None:
    """Inspecting and planning read headers only."""
    world = World(tmp_path)
    adapter = world.lora(full_lora(world))
    plan = ("merge", world.meta, adapter, "-o", tmp_path / "out", "--dry-run")
    for arguments in (("inspect", world.meta), plan):
        assert "torch" not in loaded(command(*arguments))
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_base_is_refused(tmp_path: Path) -> None:
    """Also where the base was named by one of its files."""
    world = World(tmp_path)
    adapter = world.lora(lora_tensors(world.config))
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(world.meta / "consolidated.00.pth", adapter, world.meta / "out")
    assert caught.value.code == "AT502"
