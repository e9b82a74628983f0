"""Candidate answers as a trie of ids, laid out depth by depth for batched scoring. Knows no model and no question."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """The inner nodes of one depth.

    parents: for each node, which node of the level before it continues (0 at the root's level). ids: the id that leads
    from there to it (none at the root's level).
    """

    parents: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Edge:
    """A step of a candidate: at inner node `node` of level `depth`, it goes on with `id`."""

    depth: int
    node: int
    id: int


class AnswerTrie:
    """The trie of the candidates' ids.

    levels: the inner nodes, by depth; level 0 is the root alone. paths: every candidate's edges, in order.

    Raises ValueError where a candidate is empty, or is the beginning of another (an end id prevents it).
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        self.candidates = [tuple(candidate) for candidate in candidates]
        self.levels: list[Level] = [Level((0,), ())]
        inner: dict[tuple[int, ...], int] = {(): 0}
        for depth in range(1, max(map(len, self.candidates))):
            beginnings = sorted({candidate[:depth] for candidate in self.candidates if len(candidate) > depth})
            inner |= {beginning: place for place, beginning in enumerate(beginnings)}
            parents = tuple(inner[beginning[:-1]] for beginning in beginnings)
            self.levels.append(Level(parents, tuple(beginning[-1] for beginning in beginnings)))
        for candidate in self.candidates:
            if not candidate or candidate in inner or self.candidates.count(candidate) > 1:
                raise ValueError(f"expected candidates none of which begins another, got {candidate} in {candidates}")
        self.paths = [
            tuple(Edge(depth, inner[candidate[:depth]], id_) for depth, id_ in enumerate(candidate))
            for candidate in self.candidates
        ]

    @property
    def inner_nodes(self) -> int:
        """How many nodes have a continuation, the root included."""
        return sum(len(level.parents) for level in self.levels)
