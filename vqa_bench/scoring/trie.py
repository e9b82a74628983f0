"""Candidate answers as a trie of ids, laid out depth by depth for batched scoring. Knows no model and no question."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Level:
    """The inner nodes of one depth, and the steps that candidates take from them.

    parents: for each node, which node of the level before it continues (0 at the root's level). ids: the id that leads
    from there to it (none at the root's level). candidates: those that go on here, by their places. nodes, steps: for
    each of these the inner node where it stands, and the id with which it goes on.
    """

    parents: tuple[int, ...]
    ids: tuple[int, ...]
    candidates: tuple[int, ...]
    nodes: tuple[int, ...]
    steps: tuple[int, ...]


class AnswerTrie:
    """The trie of the candidates' ids; `levels` are its inner nodes by depth, the root alone at depth 0.

    Raises ValueError where a candidate is empty, begins another (an end id prevents it), or is there twice.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        self.candidates = [tuple(candidate) for candidate in candidates]
        inner = {candidate[:depth] for candidate in self.candidates for depth in range(len(candidate))} | {()}
        if any(candidate in inner for candidate in self.candidates) or len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"expected candidates none of which begins another, got {self.candidates}")
        self.longest = max(map(len, self.candidates))
        self.levels: list[Level] = []
        places: dict[tuple[int, ...], int] = {}
        for depth in range(self.longest):
            above, beginnings = places, sorted(node for node in inner if len(node) == depth)
            places = {beginning: place for place, beginning in enumerate(beginnings)}
            going_on = [place for place, candidate in enumerate(self.candidates) if len(candidate) > depth]
            self.levels.append(
                Level(
                    parents=tuple(above[node[:-1]] for node in beginnings) if depth else (0,),
                    ids=tuple(node[-1] for node in beginnings) if depth else (),
                    candidates=tuple(going_on),
                    nodes=tuple(places[self.candidates[place][:depth]] for place in going_on),
                    steps=tuple(self.candidates[place][depth] for place in going_on),
                )
            )

    @property
    def inner_nodes(self) -> int:
        """How many nodes have a continuation, the root included."""
        return sum(len(level.parents) for level in self.levels)


@lru_cache(maxsize=16)
def answer_trie(candidates: tuple[tuple[int, ...], ...]) -> AnswerTrie:
    """The trie of the candidates, made once for all batches that are scored with them."""
    return AnswerTrie(candidates)
