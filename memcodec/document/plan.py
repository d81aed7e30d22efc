"""How a document is cut: chunks, groups of chunks, and the windows in which the LM sees a group."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memcodec.document.lengths import chunk_lengths
from memcodec.settings import MAX_CONTEXT, Context

AUTO_GROUPS = 48  # groups that `context="auto"` leaves, so that they fill a batch
AUTO_TOKENS = 400  # in a group of its at most: attention over more costs a tenth of the speed (docs/context.md)
GROUP_CONTEXTS = 4  # length of a group, in contexts, where their size is given


@dataclass(frozen=True)
class Window:
    """What the LM has before it: tokens `start` to `first` of a group, and then `first` to `last` as they come."""

    start: int
    first: int
    last: int


def cut_chunks(tokens: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """A run of tokens, int64 [tokens], as the fewest chunks of at most `chunk_tokens`, of lengths as even as can be."""
    return np.split(tokens, np.cumsum(chunk_lengths(len(tokens), chunk_tokens))[:-1]) if len(tokens) else []


@dataclass(frozen=True)
class Plan:
    """How a block's tokens are cut. runs: chunks of each run between stored spans; groups: the same chunks;
    context: tokens of its group that the LM sees before each at most."""

    runs: list[list[np.ndarray]]
    groups: list[list[np.ndarray]]
    context: int


def visible_tokens(context: Context, positions: int) -> int:
    """Tokens that the LM sees before each, at most. positions: that it has for tokens."""
    most = min(positions, MAX_CONTEXT)
    return most if context in ("auto", "max", 0) else min(int(context), most)


def plan_groups(
    runs: list[np.ndarray], chunk_tokens: int, context: Context, positions: int, alone: bool = True
) -> Plan:
    """Cut runs of tokens, int64 [tokens] each, into groups of chunks, of lengths as even as can be.

    positions: that the LM has for tokens. context: 0, each chunk is a group; "max", all are one; "auto", as long as
    AUTO_GROUPS of them remain, up to AUTO_TOKENS; a number, GROUP_CONTEXTS times as long, so that most tokens see it.
    alone: nothing else fills a batch with these.
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
        fewest = min(-(-total // chunk_tokens), AUTO_GROUPS) if alone else 1
        count = max(fewest, -(-total // min(AUTO_TOKENS, most)))
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
            some = cut_chunks(run[done : done + taken], chunk_tokens)
            chunks += some
            groups[-1] += some
            done, at = done + taken, at + taken
        by_run.append(chunks)
    longest = max(sum(map(len, group)) for group in groups)
    return Plan(by_run, [group for group in groups if group], max(1, min(visible_tokens(context, positions), longest)))


def windows(tokens: int, context: int) -> Iterator[Window]:
    """How the LM's window moves along a group: when a token would have more than `context` before it, by half."""
    start, first = 0, 0
    while first < tokens:
        last = min(tokens, start + context + 1)
        yield Window(start, first, last)
        start, first = last - context // 2, last
