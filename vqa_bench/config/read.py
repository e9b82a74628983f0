"""Reads a YAML file as its author meant it: a key given twice is an error, numbers are numbers, `no` is a word.

Knows nothing of what the file is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vqa_bench.errors import UserError

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1; here are the scalars of 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema).

    In 1.1 `1e-3` is a text, as it has no point, and `no`, as in `precision: no`, is false.
    """


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain values.

    Raises UserError, with all places, for a file that cannot be read, is not YAML, gives a key of a mapping twice
    (PyYAML takes the last without a word), or has an alias of what it stands in.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        faults = [] if node is None else [f"line {line}: {fault}" for line, fault in sorted(_faults(node, (), set()))]
        value = None if node is None or faults else loader.construct_document(node)
    except OSError as error:
        raise UserError(f"expected a configuration file, got {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"expected YAML, got {path}: {' '.join(str(error).split())}") from error
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")
    return value


def _faults(node: yaml.Node, above: tuple[yaml.Node, ...], seen: set[int]) -> Iterator[tuple[int, str]]:
    """The faults of a node and of all below it, with their lines.

    above: the nodes that it stands in; seen: those that were looked at, by id.
    """
    if any(node is one for one in above):
        yield _line(node), "expected aliases of what is complete, got one of what it stands in"
        return
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        yield from _repeated_keys(node)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        yield from _faults(child, (*above, node), seen)


def _repeated_keys(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        same = (key.tag, key.value)
        if same in first:
            yield _line(key), f"expected every key once, got {key.value!r} again, which line {first[same]} has"
        first.setdefault(same, _line(key))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
