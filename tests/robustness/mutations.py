"""Changes files so that they stay nearly right: bytes, values of JSON, and lines of YAML."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.checkpoints.fuzzing import damage

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 10**9, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "x", "\x1b]0;T\x07", "é\u202e", "9" * 5_000),
    *([], {}, [1], {"a": 1}, [[]], [None] * 50, {"type": "Sequence"}),
)
_YAML = (
    *("&a [*a]", "*a", "!!int x", "!!python/name:os.system", "2026-13-45", "{", "[", "]", "'"),
    *("<<: {a: 1}", "? [a]", "- ", "\t", ": ", "# ", "null", "~", "yes", "0x1f", "1:30", ".nan"),
    *("\x1b[2J", "\x85", "|", ">", "%YAML 1.1", "---", "...", "1e999", "0o17", "-0", "[[[[[["),
)


def mutate(content: bytes, seed: int, kind: str) -> bytes:
    """Return `content` with accidents that `seed` chooses; it differs from `content`.

    Args:
        content: Of the file.
        seed: Decides everything.
        kind: `bytes`, or `json`, `lines` of JSON, or `yaml`, whose syntax mostly stays right.
    """
    changes: dict[str, Callable[[bytes, random.Random], bytes]] = {
        "json": _change_json,
        "lines": _change_line,
        "yaml": _change_yaml,
    }
    change = changes.get(kind)
    for attempt in range(1_000):
        chance = random.Random(f"{seed} {attempt}")
        if change is None or chance.random() < 0.3:
            changed = damage(content, chance.randrange(1 << 40))
        else:
            changed = change(content, chance)
        if changed != content:
            return changed
    raise AssertionError("nothing changes this content")


def _change_json(content: bytes, chance: random.Random) -> bytes:
    document = json.loads(content)
    for _ in range(chance.choice([1, 1, 2])):
        _change_value(document, chance)
    return json.dumps(document).encode()


def _change_value(document: Any, chance: random.Random) -> None:
    """Change one value of a document, mostly a shallow one."""
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = chance.choice(keys)
        if not isinstance(document[key], (dict, list)) or chance.random() < 0.3:
            break
        document = document[key]
    match chance.randrange(8):
        case 0:
            del document[key]
        case 1 if isinstance(document, dict):
            document[f"{key}x"] = document.pop(key)
        case 2 if isinstance(document[key], (int, float)):
            document[key] = document[key] * chance.choice([2, -1, 10, 1_000])
        case _:
            document[key] = chance.choice(_VALUES)


def _change_line(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, chance.choice(lines))
        case 2:
            lines.insert(place, b"[" * 100_000 + b"\n")
        case _:
            lines[place] = _change_json(lines[place], chance) + b"\n"
    return b"".join(lines)


def _change_yaml(content: bytes, chance: random.Random) -> bytes:
    lines = content.decode().splitlines()
    for _ in range(chance.choice([1, 1, 2])):
        place = chance.randrange(len(lines))
        key, colon, value = lines[place].partition(":")
        match chance.randrange(6):
            case 0:
                lines[place] = f"{' ' * chance.randrange(6)}{lines[place].strip()}"
            case 1:
                lines.insert(place, chance.choice(lines))
            case 2:
                lines[place] = f"{key}{chance.choice('x -_.')}{colon}{value}"
            case _:
                lines[place] = f"{key}{colon} {chance.choice(_YAML)}"
    return ("\n".join(lines) + "\n").encode()
