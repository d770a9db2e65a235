"""Slots and config to the neutral `Adapter`, by a spec; every fault collected as a finding."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from adaptertools import schemas
from adaptertools.adapter.model import Adapter, LowRank, Update
from adaptertools.errors import Finding, FormatError, Severity, Where
from adaptertools.formats.build import BUILDERS, Builder
from adaptertools.formats.group import Group, Grouping
from adaptertools.formats.lookup import lookup
from adaptertools.formats.parts import configured_parts
from adaptertools.formats.rates import Rates
from adaptertools.formats.spec import FormatSpec, Refusal
from adaptertools.formats.targets import covers
from adaptertools.store.slot import Slot


class Parser:
    """One reading of one file; `adapter()` returns the neutral form."""

    def __init__(
        self,
        spec: FormatSpec,
        slots: Mapping[str, Slot],
        config: Mapping[str, Any],
        *,
        file: str,
        config_file: str,
        accept: Iterable[str] = (),
    ) -> None:
        self.spec, self.slots, self.config = spec, slots, config
        self.file, self.config_file = file, config_file
        self.accept = set(accept)
        self.findings: list[Finding] = []
        self.builder = Builder(config, self._warn)

    def adapter(self, path: str, evidence: tuple[str, ...]) -> Adapter:
        grouping = Grouping(self.spec, self.slots, self.file)
        self.findings += grouping.findings
        if not self.slots:
            self._find("AT214", "error", "the adapter has no tensors", hint="save it again")
        self._check_config()
        if self.spec.config_schema and self.spec.scale and not self.config:
            self._find(
                "AT225",
                "error",
                f"its scale is unknown: there is no {self.spec.config} beside it",
                hint=f"put the {self.spec.config} of this adapter into the same folder",
            )
        groups = [g for g in grouping.groups.values() if self._complete(g)]
        updates = self._updates(groups)
        return Adapter(
            path=path,
            format=self.spec.id,
            method=self.spec.method,
            updates=tuple(updates),
            config=dict(self.config),
            base_model=_text(self.config, self.spec.fields.get("base_model")),
            base_revision=_text(self.config, self.spec.fields.get("base_revision")),
            files=(self.file, *([self.config_file] if self.config_file else ())),
            keys=len(self.slots),
            unmatched=tuple(grouping.unmatched),
            evidence=evidence,
            findings=tuple(self.findings),
            config_schema=self.spec.config_schema,
        )

    def _updates(self, groups: list[Group]) -> list[Update]:
        low_rank = [g for g in groups if g.update.kind == "low_rank"]
        try:
            places = self._stacked_places(low_rank)
            names = [".".join(places[id(g)]) if id(g) in places else g.module for g in low_rank]
            names += [g.module for g in groups if g.update.scaled]
            rates = Rates(self.spec, self.config, names) if self.spec.scale else None
            self.builder.match_feedforward(groups)
        except FormatError as error:
            self._fault(error, self.config_file)
            return []
        self._check_patterns(rates)
        updates: list[Update] = []
        for group in groups:
            try:
                updates.append(self._update(group, rates, places.get(id(group))))
            except FormatError as error:
                self._fault(error, self.file)
        return updates

    def _update(self, group: Group, rates: Rates | None, place: tuple[str, str] | None) -> Update:
        if group.update.kind == "scaling":
            ruled = rates if group.update.scaled else None
            rate = None if ruled is None else lambda r: ruled.rate(group.module, r)
            scaling = self.builder.scaling(group, rate)
            return replace(scaling, enabled=configured_parts(self.spec.parts, self.config))
        if group.update.kind != "low_rank":
            return BUILDERS[group.update.kind](self.builder, group)
        assert rates is not None
        if place is None:
            update: Update = self.builder.low_rank(group, lambda r: rates.rate(group.module, r))
        else:
            name = ".".join(place)
            rank = int(rates.rank.value(name) or 0)
            update = self.builder.stacked(
                group, place[1], place[0], rank, lambda r: rates.rate(name, r)
            )
        low_rank = _unwrapped(cast(LowRank, update))
        if low_rank.parts is not None and self.spec.parts:
            enabled = configured_parts(self.spec.parts, self.config)
            return replace(low_rank, enabled=enabled)
        return low_rank

    def _stacked_places(self, groups: list[Group]) -> dict[int, tuple[str, str]]:
        """Return, for each update on a named parameter, the module and the parameter it means."""
        roots: dict[str, list[Group]] = {}
        for group in groups:
            if group.update.stacked is not None:
                roots.setdefault(_root(group), []).append(group)
        places = {}
        for root, members in roots.items():
            stacked = members[0].update.stacked
            assert stacked is not None
            named = self.config.get(stacked.parameters)
            bare = not covers(self.config.get("target_modules"), root)
            params = _parameters(root, named, bare=bare)
            if not params and len(members) == 1 and members[0].module == root:
                continue
            if len(params) != len(members):
                raise FormatError(
                    "AT215",
                    f"{root} has {len(members)} nested adapters, but {stacked.parameters} names "
                    f"{len(params)} of its parameters",
                    key=stacked.parameters,
                )
            members.sort(key=lambda g: -g.module.count(f".{stacked.wrapper}"))
            places.update({id(g): (root, p) for g, p in zip(members, params, strict=True)})
        return {k: place for k, place in places.items() if place[1] != "weight"}

    def _complete(self, group: Group) -> bool:
        """Report roles that are missing, or present against the config."""
        present = True
        for role in group.update.roles:
            here = role.name in group.slots
            required = role.name in ("down", "up", "gate")
            if not here and required:
                known = next(iter(group.slots.values())).name
                self._find(
                    "AT211",
                    "error",
                    f"has no partner for {known!r} (its {role.name} tensor is missing)",
                    key=role.templates[0].format({"module": group.module}),
                    hint="the file is incomplete; save or download it again",
                )
                present = False
            elif role.when and here != bool(self.config.get(role.when)):
                self._check_flag(group, role.name, role.when, here)
        return present

    def _check_flag(self, group: Group, role: str, flag: str, here: bool) -> None:
        if here:
            self._warn(
                "AT223",
                group.slots[role].name,
                f"{flag} is off; the tensor is applied",
                "on",
                "off",
            )
        elif role == "magnitude" and not _root_wrapped(group):
            self._find(
                "AT224",
                "error",
                f"{flag} is on, but {group.module} has no {role} tensor",
                hint="the trained magnitudes are lost; save the adapter again",
            )

    def _check_config(self) -> None:
        for refusal in self.spec.refusals:
            if self._refused(refusal):
                value = lookup(self.config, refusal.field)
                self._find(
                    "AT230",
                    "error",
                    f"{refusal.field}={str(value)[:60]}: {refusal.why}",
                    file=self.config_file,
                    key=refusal.field,
                    hint=refusal.hint,
                )
        if self.spec.config_schema is None:
            return
        known = schemas.json_schema(self.spec.config_schema)["properties"]
        for name in sorted(set(self.config) - set(known)):
            variant = name.startswith("use_") or name.endswith("_config")
            severe = variant and bool(self.config[name])
            self._find(
                "AT231" if severe else "AT302",
                "error" if severe else "warning",
                "an unknown variant is switched on" if severe else "an unknown field is ignored",
                file=self.config_file,
                key=name,
                hint="written by a newer PEFT? its effect on the weights is not known"
                if severe
                else "",
            )

    def _refused(self, refusal: Refusal) -> bool:
        value = lookup(self.config, refusal.field)
        if not value or refusal.unless in self.accept:
            return False
        if refusal.matches:
            return isinstance(value, str) and any(
                fnmatch.fnmatchcase(value.lower(), pattern) for pattern in refusal.matches
            )
        return True

    def _check_patterns(self, rates: Rates | None) -> None:
        if rates is None:
            return
        for name, term in (("rank", rates.rank), ("alpha", rates.alpha)):
            for pattern in term.unused:
                title = f"the {name} pattern {pattern[:80]!r} matches no module"
                self._find("AT305", "warning", title, file=self.config_file)
            for module in term.contested:
                title = f"two {name} patterns with different values match {module}; the first wins"
                self._find(
                    "AT306",
                    "warning",
                    title,
                    file=self.config_file,
                    hint="PEFT sorts patterns on saving, so the trained order may differ",
                )

    def _fault(self, error: FormatError, file: str) -> None:
        self._find(
            error.code, "error", error.message, file=file, key=error.where.key, hint=error.hint
        )

    def _warn(self, code: str, key: str, title: str, expected: object, found: object) -> None:
        where = Where(self.file, key)
        self.findings.append(Finding(code, "warning", title, where, str(expected), str(found)))

    def _find(
        self,
        code: str,
        severity: Severity,
        title: str,
        *,
        file: str | None = None,
        key: str | None = None,
        hint: str = "",
    ) -> None:
        self.findings.append(
            Finding(code, severity, title, Where(file or self.file, key), hint=hint)
        )


def _text(config: Mapping[str, Any], fields: str | Sequence[str] | None) -> str | None:
    value = lookup(config, *([fields] if isinstance(fields, str) else fields or ()))
    return value if isinstance(value, str) and value else None


def _root(group: Group) -> str:
    assert group.update.stacked is not None
    suffix = f".{group.update.stacked.wrapper}"
    root = group.module
    while root.endswith(suffix):
        root = root.removesuffix(suffix)
    return root


def _root_wrapped(group: Group) -> bool:
    return group.update.stacked is not None and _root(group) != group.module


def _parameters(root: str, named: Any, *, bare: bool) -> list[str]:
    """Return the parameters of module `root` that a target_parameters list names, in order.

    An entry names the end of a parameter's path, so one without a dot means that parameter of any
    module; such entries count where `bare`, and where no entry names the module.
    """
    entries = [e for e in named if isinstance(e, str)] if isinstance(named, list) else []
    split = [entry.rpartition(".") for entry in dict.fromkeys(entries)]
    found = [p for path, _, p in split if path and f".{root}".endswith(f".{path}")]
    if not found and bare:
        found = [param for path, _, param in split if not path]
    return parameters_in_order(dict.fromkeys(found))


def parameters_in_order(names: Iterable[str]) -> list[str]:
    """Return parameters of one module in the order in which PEFT wraps them, innermost first."""
    order: list[str] = schemas.table("names")["expert_parameters"]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _unwrapped(update: LowRank) -> LowRank:
    """Drop the wrapper segment inside a module path (`attn.base_layer.out_proj`)."""
    module = update.target.module.replace(".base_layer.", ".")
    return replace(update, target=replace(update.target, module=module))
