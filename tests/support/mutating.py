"""Seeded damage of files: bits, pieces, and values inside JSON and ONNX that a damaged or hostile file could hold."""

from __future__ import annotations

import json
import random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, -32, 0.5, 1e308, -1e-320, 10**10, -(10**10), 2**63, 10**30, "", "x", "\x00", "é", [], {},
    [0], [-1, 10**9], {"op": "Relu"}, "../../x",
)  # fmt: skip
_PIECE = 64


def mutated_bytes(raw: bytes, rng: random.Random) -> bytes:
    """One to three kinds of damage that know nothing of the format."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randint(1, _PIECE)]
        elif kind == 4:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, _PIECE)))
        elif kind == 5:
            data[at:at] = data[at : at + rng.randint(1, _PIECE)]
        else:
            data[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"nan ", b"9999"))
    return bytes(data)


def mutated_json(raw: bytes, rng: random.Random) -> bytes:
    """One or two values of a JSON document replaced, dropped, doubled, swapped or nested deep."""
    document = json.loads(raw)
    for _ in range(rng.randint(1, 2)):
        places = list(_places(document))
        if not places:
            break
        owner, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 2:
            owner[key] = _near(owner[key], rng) if kind else rng.choice(ODD_VALUES)
        elif kind == 3:
            del owner[key]
        elif kind == 4:
            other, name = rng.choice(places)
            owner[key] = json.loads(json.dumps(other[name]))
        else:
            deep: Any = 0
            for _ in range(rng.choice((3, 50))):
                deep = [deep]
            owner[key] = deep
    return json.dumps(document).encode()


def _near(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, 0))
    return rng.choice(ODD_VALUES)


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def mutated_onnx(raw: bytes, rng: random.Random) -> bytes:
    """One or two fields of an ONNX file changed where a parser does not mind."""
    import onnx

    model = onnx.load_from_string(raw)
    for _ in range(rng.randint(1, 2)):
        message = model.graph
        for _ in range(rng.randint(0, 4)):  # down to some message
            inner = [
                entry
                for field, value in message.ListFields()
                if field.type == field.TYPE_MESSAGE
                for entry in (value if not hasattr(value, "ListFields") else [value])
            ]
            if not inner:
                break
            message = rng.choice(inner)
        fields = message.ListFields()
        if fields:
            field, value = rng.choice(fields)
            _change(message, field, value, rng)
    return model.SerializeToString()


def _change(message: Any, field: Any, value: Any, rng: random.Random) -> None:
    kind = rng.randrange(4)
    many = not isinstance(value, (int, float, str, bytes)) and not hasattr(value, "ListFields")
    if kind == 0 or hasattr(value, "ListFields"):
        message.ClearField(field.name)
    elif many and len(value):
        if kind == 1:
            del value[rng.randrange(len(value))]
        elif not hasattr(value[0], "ListFields"):
            value[rng.randrange(len(value))] = _scalar(value[0], rng)
        elif len(value) > 1:
            value.add().CopyFrom(rng.choice(list(value)))
    elif not many:
        try:
            setattr(message, field.name, _scalar(value, rng))
        except ValueError:  # an enumeration takes its own values only
            message.ClearField(field.name)


def _scalar(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str):
        return rng.choice(("", "x", "é", "../x", value + "_", value[:-1], '{"a": [1, 2'))
    if isinstance(value, bytes):
        return mutated_json(value, rng) if value[:1] == b"{" else mutated_bytes(value, rng)
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, value * 2))
    return rng.choice((0, 1, -1, 2**31 - 1, 10**9, value + 1, value * 2)) if value < 2**30 else 0
