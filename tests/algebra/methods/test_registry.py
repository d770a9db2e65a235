"""The table of methods: names, near misses, parameters as they are given, and no torch to list."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertools.algebra.methods.model import Late, Method
from adaptertools.algebra.methods.registry import (
    ALIASES,
    COMPAT,
    REGISTRY,
    check_count,
    check_params,
    declared,
    get_method,
)
from adaptertools.errors import AdapterError

ALL = [*REGISTRY.values(), *COMPAT["peft"].values()]


def refusal(name: str, given: Mapping[str, object], compat: str = "") -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        check_params(get_method(name, "peft" if compat else ""), given)
    assert caught.value.code == "AT500"
    return caught.value


@pytest.mark.parametrize("method", ALL, ids=lambda m: f"{m.name}-{m.title.split()[0]}")
def test_every_method_is_whole(method: Method) -> None:
    """It can be called, its defaults are allowed, and it says what it is."""
    assert isinstance(method.run, Late) and callable(method.run.found())
    assert method.formula and method.title and method.paper.startswith("https://")
    params = check_params(method, {})
    assert params == {name: p.default for name, p in declared(method, {}).items()}
    assert all(p.help for p in method.params)
    assert method.kind != "low_rank" or method.exact or method in COMPAT["peft"].values()
    for inner in method.inner:
        assert REGISTRY[inner].kind in ("low_rank", "dense")
        check_params(method, {"inner": inner})


def test_what_is_there() -> None:
    wanted = (
        *("linear", "average", "ties", "dare_linear", "dare_ties", "della", "della_linear"),
        *("magnitude", "breadcrumbs", "breadcrumbs_ties", "slerp", "nuslerp", "multislerp"),
        *("karcher", "model_stock", "sce", "knots", "tsv", "iso_c", "iso_c_lowrank"),
        *("core_space", "ram", "ramplus_tl", "nearswap", "arcee_fusion"),
    )
    assert REGISTRY.keys() >= set(wanted)
    assert set(ALIASES.values()) <= REGISTRY.keys() and not ALIASES.keys() & REGISTRY.keys()
    assert get_method("task_arithmetic") is REGISTRY["linear"]


@pytest.mark.parametrize(
    ("name", "compat", "hint"),
    [("tise", "", "ties"), ("task_aritmetic", "", "task_arithmetic"), ("lineer", "peft", "linear")],
)
def test_near_misses(name: str, compat: str, hint: str) -> None:
    with pytest.raises(AdapterError) as caught:
        get_method(name, "peft" if compat else "")
    assert caught.value.code == "AT500"
    assert caught.value.hint == f"did you mean {hint!r}?"


def test_ours_and_pefts_are_told_apart() -> None:
    assert get_method("linear").exact and not get_method("linear", "peft").exact
    with pytest.raises(AdapterError, match="peft has no method called 'karcher'"):
        get_method("karcher", "peft")


def test_text_is_read() -> None:
    got = check_params(get_method("della"), {"density": "0.5", "epsilon": "0.1"})
    assert (got["density"], got["epsilon"], got["rescale"]) == (0.5, 0.1, "prob")
    assert check_params(get_method("karcher"), {"max_iter": "3"})["max_iter"] == 3
    assert check_params(get_method("model_stock"), {"filter_wise": "True"})["filter_wise"] is True
    assert check_params(get_method("ties"), {"density": 1})["density"] == 1.0


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        ("ties", {"densty": 0.5}, "no parameter 'densty'"),
        ("ties", {"density": 1.1}, "must lie in 0 to 1"),
        ("ties", {"density": -0.1}, "must lie in 0 to 1"),
        ("ties", {"density": "nan"}, "must lie in 0 to 1"),
        ("linear", {"lambda": "inf"}, "must lie in"),
        ("ties", {"density": "half"}, "is a number"),
        ("ties", {"density": True}, "is a number"),
        ("karcher", {"max_iter": 2.5}, "is a whole number"),
        ("model_stock", {"filter_wise": "perhaps"}, "is true or false"),
        ("ties", {"elect": "sumn"}, "cannot be 'sumn'"),
        ("ties", {"elect": 3}, "cannot be 3"),
        ("della", {"density": 0.9, "epsilon": 0.15}, "between 0 and 1"),
        ("della_linear", {"density": 0.1, "epsilon": 0.1}, "between 0 and 1"),
        ("knots", {"inner": "della", "density": 0.9}, "between 0 and 1"),
        ("knots", {"inner": "linear", "density": 0.9}, "no parameter 'density'"),
        ("knots", {"inner": "iso_c"}, "cannot be 'iso_c'"),
    ],
)
def test_refusals(name: str, params: dict[str, object], told: str) -> None:
    assert told in refusal(name, params).message


def test_a_refusal_says_what_to_write() -> None:
    assert refusal("ties", {"densty": 0.5}).hint == "did you mean 'density'?"
    assert refusal("ties", {"elect": "cuont"}).hint == "did you mean 'count'?"


@given(
    st.dictionaries(st.text(max_size=8), st.none() | st.text() | st.floats() | st.lists(st.none()))
)
def test_anything_is_checked_or_refused(params: dict[str, object]) -> None:
    """No other error, whatever is given, under known names too."""
    for method in ALL:
        given_params = dict(params)
        for param, value in zip(method.params, params.values(), strict=False):
            given_params[param.name] = value
        try:
            check_params(method, given_params)
        except AdapterError as error:
            assert error.code == "AT500"


def test_counts() -> None:
    check_count(get_method("slerp"), 2)
    for name, count in (("slerp", 1), ("slerp", 3), ("model_stock", 1), ("linear", 0)):
        with pytest.raises(AdapterError) as caught:
            check_count(get_method(name), count)
        assert caught.value.code == "AT500"


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from adaptertools.algebra.methods.registry import REGISTRY, check_params, get_method\n"
        "check_params(get_method('knots'), {'inner': 'ties'})\n"
        "print({'torch', 'numpy'} & set(sys.modules))\n"
        "REGISTRY['ties'].run.found()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "True"]
