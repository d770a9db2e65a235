"""Would it serve? The rules of a profile against one adapter, each finding with its repair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.check import contents, strength, wording
from adaptertools.check.case import Case, Hit
from adaptertools.check.profile import Profile, Rule
from adaptertools.errors import Finding, Where

Predicate = Callable[[Case], Iterator[Hit]]

# The closed list of what a rule may ask. The ids are stable: a new one goes to the end.
PREDICATES: Mapping[str, tuple[str, Predicate]] = {
    "format": ("AT700", wording.format_),
    "file_name": ("AT701", wording.file_name),
    "dtype": ("AT702", wording.dtype),
    "key_form": ("AT703", wording.key_form),
    "wrapped_keys": ("AT704", wording.wrapped_keys),
    "config_lacks": ("AT705", wording.config_lacks),
    "target_modules": ("AT706", wording.target_modules),
    "target_regex": ("AT707", wording.target_regex),
    "init": ("AT708", wording.init),
    "variant": ("AT709", wording.variant),
    "rank_over": ("AT710", strength.rank_over),
    "rank_not_allowed": ("AT711", strength.rank_not_allowed),
    "rank_pattern": ("AT712", strength.rank_pattern),
    "mixed_rank": ("AT713", strength.mixed_rank),
    "mixed_scale": ("AT714", strength.mixed_scale),
    "rslora": ("AT715", strength.rslora),
    "alpha_pattern": ("AT716", strength.alpha_pattern),
    "alpha_zero": ("AT717", strength.alpha_zero),
    "dora": ("AT718", contents.dora),
    "lora_bias": ("AT719", contents.lora_bias),
    "bias": ("AT720", contents.bias),
    "full_tensor": ("AT721", contents.full_tensor),
    "base_layer": ("AT722", contents.base_layer),
    "embedding_lora": ("AT723", contents.embedding_lora),
    "embedding_size": ("AT724", contents.embedding_size),
    "added_tokens": ("AT725", contents.added_tokens),
    "tied": ("AT726", contents.tied),
    "token_rows": ("AT727", contents.token_rows),
    "ia3": ("AT728", contents.ia3),
    "adalora": ("AT729", contents.adalora),
    "conv": ("AT730", contents.conv),
    "experts": ("AT731", contents.experts),
    "experts_3d": ("AT732", contents.experts_3d),
    "experts_missing": ("AT733", contents.experts_missing),
    "partner_missing": ("AT734", contents.partner_missing),
    "layers_missing": ("AT735", contents.layers_missing),
    "zero_update": ("AT736", contents.zero_update),
}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule of a profile that an adapter breaks, and every place where it does."""

    rule: Rule
    hits: tuple[Hit, ...]

    @property
    def id(self) -> str:
        return PREDICATES[self.rule.when][0]

    @property
    def unknown(self) -> bool:
        """Whether only the base could tell."""
        return self.hits[0].unknown


def violations(
    adapter: Adapter, profile: Profile, base: Mapping[str, Any] | None = None
) -> tuple[Violation, ...]:
    """Return the rules of `profile` that the adapter breaks; `base` is the base's parsed config."""
    found = []
    for rule in profile.rules:
        if rule.only_for and adapter.format not in rule.only_for:
            continue
        _, predicate = PREDICATES[rule.when]
        if hits := tuple(predicate(Case(adapter, rule.params, base))):
            found.append(Violation(rule, hits))
    return tuple(found)


def serving_findings(
    adapter: Adapter, profile: Profile, base: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Return one finding (AT700 to AT736) for each rule of `profile` that the adapter breaks."""
    return [_finding(adapter, profile, found) for found in violations(adapter, profile, base)]


def _finding(adapter: Adapter, profile: Profile, violation: Violation) -> Finding:
    rule, first = violation.rule, violation.hits[0]
    file = adapter.files[-1] if first.in_config else adapter.files[0]
    where = Where(file, first.key)
    found = _counted([hit.found for hit in violation.hits])
    expected = _counted(list(dict.fromkeys(h.expected for h in violation.hits if h.expected)))
    if violation.unknown:
        title, hint = f"whether this applies depends on the base: {rule.says}", "give --base"
        return Finding(violation.id, "info", title, where, expected, found, hint)
    hint = _next_step(rule, profile)
    return Finding(violation.id, rule.severity, rule.says, where, expected, found, hint)


def _counted(texts: Sequence[str]) -> str:
    """Return texts in words, alike ones once with their number, at most a few."""
    counts = Counter(texts)
    told = [f"{text} ×{n}" if n > 1 else text for text, n in counts.items()]
    more = [f"{len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
    return ", ".join(told[:_SHOWN] + more)


def _next_step(rule: Rule, profile: Profile) -> str:
    """Return what to do: the repair in words, or the rule's own advice where there is none."""
    command = f"'adaptertools convert --for {profile.id}'"
    steps = {
        "fold_scale": f"{command} folds the scale into B, which is exact",
        "pad_rank": f"{command} pads the ranks with zeros, which is exact",
        "drop": f"{command} leaves out what changes nothing and refuses the rest; "
        "'adaptertools merge' puts all of it into the base",
        "convert": f"'adaptertools convert --to {rule.to}' writes it so",
        "none": "merge it into the base and serve that: 'adaptertools merge BASE ADAPTER -o OUT'",
    }
    return rule.instead or steps[rule.repair]
