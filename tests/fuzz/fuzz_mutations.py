"""Damage to files: bytes, numbers in text, values of JSON, rows of Parquet, members of zips, and what stands at a path.

A mutation is a tuple of plain numbers and words, so that hypothesis can draw, repeat and shrink it. ``apply`` damages
one file with it.
"""

import io
import json
import os
import re
import shutil
import struct
import zipfile

from hypothesis import strategies as st

DEEP = "deep"  # stands for [[[[...]]]]
VALUES = [
    *(None, True, False, -1, 0, 1, 3, 255, 2**16, 2**31 - 1, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "../../etc/passwd", "/dev/zero", "x" * 300, "a\0b", "\ud800", "é"),
    *([], {}, [1], [[]], {"a": 1}, [0] * 50, DEEP),
]
_position = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
_bytes = st.tuples(st.just("bytes"), st.sampled_from(["flip", "zero", "cut", "insert", "repeat", "drop"]), _position)
_bytes = st.tuples(_bytes, st.integers(0, 255), st.sampled_from([1, 2, 4, 16, 200]))
_number = st.tuples(st.just("number"), _position, st.sampled_from([-1, 0, 1, 7, 2**31, 2**40, 10**12, 10**30]))
_value = st.tuples(st.just("value"), _position, st.sampled_from(range(len(VALUES))))
_drop_key = st.tuples(st.just("key"), _position, st.just(0))
_member = st.tuples(st.just("member"), _position, _bytes | _number)
_path = st.tuples(
    st.just("path"), st.sampled_from(["missing", "empty", "folder", "fifo", "device", "loop"]), st.just(0)
)
_one = st.one_of(_bytes, _number, _value, _value, _value, _drop_key, _member, _path)
mutations = st.lists(st.tuples(_position, _one), min_size=1, max_size=3)


def apply(path, mutation):
    """Damage the file ``path``; a mutation that does not suit the file leaves it as it is."""
    kind = mutation[0]
    if kind == "path":
        _replace(path, mutation[1])
    elif path.is_file() and not path.is_symlink():
        content = path.read_bytes()
        damaged = _damage(path.suffix, content, mutation)
        if damaged is not None:
            path.write_bytes(damaged)


def _replace(path, kind):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)


def _damage(suffix, content, mutation):
    kind = mutation[0]
    if isinstance(kind, tuple):
        return _damage_bytes(content, mutation)
    if kind == "number":
        return _damage_number(content, mutation[1], mutation[2])
    if kind == "member":
        return _damage_member(suffix, content, mutation[1], mutation[2])
    try:
        return _damage_value(suffix, content, *mutation)
    except Exception:  # an earlier mutation left nothing that can be parsed
        return None


def _damage_bytes(content, mutation):
    (_, kind, position), value, length = mutation
    start = int(position * len(content))
    if kind == "flip":
        return content[:start] + bytes([value]) + content[start + 1 :]
    if kind == "zero":
        return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]
    if kind == "cut":
        return content[:start]
    if kind == "insert":
        return content[:start] + bytes([value]) * length + content[start:]
    if kind == "repeat":
        return content[: start + length] + content[start:]
    return content[:start] + content[start + length :]


def _damage_number(content, position, value):
    """Replace one number that is written in digits."""
    numbers = list(re.finditer(rb"\d+", content))
    if not numbers:
        return None
    number = numbers[int(position * len(numbers))]
    return content[: number.start()] + str(value).encode() + content[number.end() :]


def _damage_member(suffix, content, position, mutation):
    """Damage one file in a zip, whose checksum is right again."""
    if suffix not in (".npz", ".zip"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except Exception:
        return None
    if not members:
        return None
    name = sorted(members)[int(position * len(members))]
    members[name] = _damage("", members[name], mutation) or b""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return buffer.getvalue()


def _damage_value(suffix, content, kind, position, choice):
    """Replace or remove one value of a structured file."""
    if suffix in (".json", ".jsonl"):
        return _dump(_changed(json.loads(content), kind, position, choice)).encode("utf-8", "surrogatepass")
    if suffix == ".safetensors":
        (length,) = struct.unpack("<Q", content[:8])
        header = _changed(json.loads(content[8 : 8 + length]), kind, position, choice)
        text = _dump(header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet as parquet

        table = parquet.read_table(io.BytesIO(content))
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        tree = _changed({"rows": table.to_pylist(), "metadata": metadata}, kind, position, choice)
        try:
            changed = pyarrow.Table.from_pylist(tree["rows"], schema=table.schema)
        except Exception:
            changed = pyarrow.Table.from_pylist(tree["rows"])
        changed = changed.replace_schema_metadata(tree["metadata"])
        buffer = io.BytesIO()
        parquet.write_table(changed, buffer)
        return buffer.getvalue()
    return None


def _dump(tree):
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * 20_000 + "]" * 20_000)


def _changed(tree, kind, position, choice):
    """Change one node; texts that are JSON themselves are trees too."""
    nodes = []
    _collect(tree, (), nodes)
    path = nodes[int(position * len(nodes))]
    return _change(tree, path, kind, VALUES[choice])


def _collect(tree, path, nodes):
    nodes.append(path)
    if isinstance(tree, str) and tree[:1] in ("{", "["):
        try:
            inner = json.loads(tree)
        except ValueError:
            return
        for place in _children(inner):
            _collect(inner[place], (*path, None, place), nodes)
    for place in _children(tree):
        _collect(tree[place], (*path, place), nodes)


def _children(tree):
    if isinstance(tree, dict):
        return list(tree)
    return range(len(tree)) if isinstance(tree, list) else ()


def _change(tree, path, kind, value):
    if not path:
        return value
    if path[0] is None:
        return _dump(_change(json.loads(tree), path[1:], kind, value))
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(path) == 1 and kind == "key":
        del copy[path[0]]
    else:
        copy[path[0]] = _change(copy[path[0]], path[1:], kind, value)
    return copy
