"""How a document is cut: chunks, groups of chunks, and the windows in which the LM sees a group."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memcodec.document.lengths import chunk_lengths
from memcodec.levels import GroupRule
from memcodec.settings import MAX_CONTEXT, Context

GROUP_CONTEXTS = 4  # length of a group, in contexts, if the context is a number


@dataclass(frozen=True)
class Window:
    """A window of a group: the LM first reads tokens `start` to `first`, then codes tokens `first` to `last`."""

    start: int
    first: int
    last: int


def cut_chunks(tokens: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """A run of tokens, int64 [tokens], as the fewest chunks of at most `chunk_tokens`, of similar lengths."""
    return np.split(tokens, np.cumsum(chunk_lengths(len(tokens), chunk_tokens))[:-1]) if len(tokens) else []


@dataclass(frozen=True)
class Plan:
    """How the tokens of a block are cut. runs: the chunks of each run between stored spans; groups: the same chunks by
    group; context: the most tokens of its group that the LM sees before each token."""

    runs: list[list[np.ndarray]]
    groups: list[list[np.ndarray]]
    context: int


def visible_tokens(context: Context, positions: int) -> int:
    """The most tokens that the LM sees before each token. positions: the number that the LM has for tokens.

    With context 0 this is as many as with "max": each chunk is a group, and the LM sees the group from its beginning.
    """
    most = min(positions, MAX_CONTEXT)
    return most if context in ("auto", "max", 0) else min(int(context), most)


def plan_groups(
    runs: list[np.ndarray], chunk_tokens: int, context: Context, rule: GroupRule, positions: int, alone: bool = True
) -> Plan:
    """Cut runs of tokens, int64 [tokens] each, into groups of chunks, all of similar length.

    positions: the number that the LM has for tokens. context: 0 makes each chunk a group; "max" makes one group; "auto"
    makes groups as the rule says; a number makes groups GROUP_CONTEXTS times as long, so that most tokens have that
    much context. alone: no other document is encoded.
    """
    total, most = sum(map(len, runs)), min(positions, MAX_CONTEXT)
    if not total:
        return Plan([], [], 1)
    if context == 0:
        single = [cut_chunks(run, chunk_tokens) for run in runs]
        longest = max((len(chunk) for chunks in single for chunk in chunks), default=1)
        return Plan(single, [[chunk] for chunks in single for chunk in chunks], min(longest, most))
    if context == "max":
        count = 1
    elif context == "auto":
        count = rule.number(total, most, alone)
    else:
        count = total // (GROUP_CONTEXTS * context)
    count = max(1, min(count, total))
    ends = [total * i // count for i in range(1, count + 1)]
    by_run: list[list[np.ndarray]] = []
    groups: list[list[np.ndarray]] = [[]]
    at = 0
    for run in runs:
        chunks: list[np.ndarray] = []
        done = 0
        while done < len(run):
            if at == ends[len(groups) - 1]:
                groups.append([])
            taken = min(len(run) - done, ends[len(groups) - 1] - at)
            piece = cut_chunks(run[done : done + taken], chunk_tokens)
            chunks += piece
            groups[-1] += piece
            done, at = done + taken, at + taken
        by_run.append(chunks)
    longest = max(sum(map(len, group)) for group in groups)
    return Plan(by_run, [group for group in groups if group], max(1, min(visible_tokens(context, positions), longest)))


def windows(tokens: int, context: int) -> Iterator[Window]:
    """The windows of a group: if a token would see more than `context`, the next one starts, half a context later."""
    start, first = 0, 0
    while first < tokens:
        last = min(tokens, start + context + 1)
        yield Window(start, first, last)
        start, first = last - context // 2, last
