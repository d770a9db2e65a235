"""Regular expressions that come from a file, matched with a bound on time.

Python's `re` backtracks: a pattern from an untrusted `adapter_config.json` may run for years. A
pattern without quantifiers or groups is matched here; any other goes to a child process that is
ended after a few seconds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence

from adaptertools.errors import FormatError

SECONDS = 2.0
_PLAIN = re.compile(r"(?:[\w\-]|\\?\.|\\d)*")
_CHILD = """
import json, re, sys
patterns, texts = json.load(sys.stdin)
compiled = [re.compile(p) for p in patterns]
json.dump([[bool(c.match(t)) for t in texts] for c in compiled], sys.stdout)
"""


def match_table(wrap: str, patterns: Sequence[str], texts: Iterable[str]) -> list[list[bool]]:
    """Return, for each pattern, whether `re.match` of `wrap` filled with it accepts each text.

    `wrap` holds one `{}` for the pattern, e.g. PEFT's `(.*\\.)?({})$`. Raises `FormatError`
    (AT212) for a pattern that does not compile or exceeds the time bound.

    >>> match_table(r"(.*\\.)?({})$", ["q_proj"], ["layers.0.q_proj", "layers.0.xq_proj"])
    [[True, False]]
    """
    texts = list(texts)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise FormatError(
                "AT212", f"the pattern {pattern[:80]!r} is not a regular expression: {error}"
            ) from None
    full = [wrap.replace("{}", pattern) for pattern in patterns]
    if all(_PLAIN.fullmatch(pattern) for pattern in patterns):
        compiled = [re.compile(pattern) for pattern in full]
        return [[bool(c.match(text)) for text in texts] for c in compiled]
    return _match_in_child(full, texts)


def _match_in_child(patterns: list[str], texts: list[str]) -> list[list[bool]]:
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([patterns, texts]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise FormatError(
            "AT212",
            f"a pattern takes more than {SECONDS:g} s to match: {max(patterns, key=len)[:80]!r}",
            hint="replace the pattern by plain module names",
        ) from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it failed"])[-1]
        raise FormatError("AT212", f"a pattern cannot be matched: {last}") from None
    result: list[list[bool]] = json.loads(done.stdout)
    return result
