"""Train memcodec/tables.json: the frequencies of hits and misses, by regime and context, on a folder of texts.

    python benchmarks/train_tables.py FOLDER --model FOLDER [--rounds 3]

Texts of several kinds and languages, none of them used in the benchmarks. Each round encodes all chunks with the
tables of the round before, counts the symbols that the encoder chose, and smooths each context towards its neighbours
and the mean of all. Encoder and search take their costs from the same tables: a round changes what the next chooses.
"""

import argparse
import json
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from transformers import AutoTokenizer

from memcodec import corrections, greedy, readout
from memcodec.corrections import (
    BUCKETS,
    CONTEXTS,
    FULL,
    RANK_BITS,
    RANK_STARTS,
    SPLITS,
    SYMBOLS,
    TABLE_BITS,
    TOP,
    Tables,
)
from memcodec.lm import FrozenLM

TOTAL = 1 << TABLE_BITS
MARGIN = 1e-3
RATES = {"0": "0", "0.5": "1/2", "1": "1", "2": "2", "4": "4", "8": "8"}

Log = list[tuple[int, int]]


class LoggedEncoder(corrections.CorrectionEncoder):
    """Notes (context, symbol) of every token; -1 is a hit."""

    log: ClassVar[Log] = []

    def hit(self) -> None:
        LoggedEncoder.log.append((self.context, -1))
        super().hit()

    def miss(self, token: int, code: int, rank: int) -> None:
        symbol = FULL if code < 0 else code * BUCKETS + int(corrections.BUCKET_OF_RANK[rank])
        LoggedEncoder.log.append((self.context, symbol))
        super().miss(token, code, rank)


def starting_tables() -> Tables:
    """Ranks fall off as 1/rank; ranks from TOP on go to the nested codes, plain codes are the exception."""
    weights = np.empty(SYMBOLS)
    for symbol in range(FULL):
        code, bucket = divmod(symbol, BUCKETS)
        start, split = RANK_STARTS[bucket], corrections.CODE_BITS[code]
        offset = TOP if 0 < code < SPLITS else 0.5
        width = np.log((start + 2.0 ** RANK_BITS[bucket] + offset) / (start + offset))
        usual = start < TOP and code < SPLITS
        weights[symbol] = width * (1 if usual else 0.01) * 0.9**split
    weights[FULL] = 0.02
    return Tables(8, np.full(CONTEXTS, TOTAL // 2), np.tile(to_frequencies(weights), (CONTEXTS, 1)))


def to_frequencies(weights: np.ndarray) -> np.ndarray:
    """Positive integers that sum to 2**15, near-proportional to `weights`."""
    result = np.maximum(1, np.floor(weights / weights.sum() * (TOTAL - len(weights)))).astype(np.int64)
    result[result.argmax()] += TOTAL - result.sum()
    return result


def tables_from(log: Log) -> Tables:
    """Count, smooth, and quantize."""
    hits, misses = np.zeros((CONTEXTS, 2)), np.zeros((CONTEXTS, SYMBOLS))
    for context, symbol in log:
        hits[context, int(symbol < 0)] += 1
        if symbol >= 0:
            misses[context, symbol] += 1
    hits, misses = with_neighbours(hits), with_neighbours(misses)
    hits += 10 * hits.sum(axis=0) / hits.sum()
    mean = misses.sum(axis=0) + 0.3
    misses += 30 * mean / mean.sum()
    levels = np.array([corrections.LEVELS[symbol] if symbol >= 0 else 0 for _, symbol in log])
    hit = (hits[:, 1] / hits.sum(axis=1) * TOTAL).round().astype(np.int64).clip(64, TOTAL - 64)
    prior = round(corrections.PRIOR_TOKENS * float(levels.mean()))
    return Tables(prior, hit, np.array([to_frequencies(row) for row in misses]))


def with_neighbours(counts: np.ndarray) -> np.ndarray:
    """Each mean context borrows from the two beside it, and from its twin at the other positions."""
    result = counts.copy()
    early = corrections.EARLY_CONTEXTS
    middle, late = slice(early, early + corrections.MEAN_CONTEXTS), slice(early + corrections.MEAN_CONTEXTS, None)
    for part in (middle, late):
        result[part][1:] += 0.3 * counts[part][:-1]
        result[part][:-1] += 0.3 * counts[part][1:]
    result[middle] += 0.1 * counts[late]
    result[late] += 0.2 * counts[middle]
    return result


class Sample:
    """One chunk's unsteered side, computed once and used in every round."""

    def __init__(self, tokens: np.ndarray, hidden: torch.Tensor, lm: FrozenLM, classes: corrections.TokenClasses):
        logits = lm.logits(hidden)
        rows = logits.numpy()
        self.tokens = tokens
        self.own = rows[np.arange(len(tokens)), tokens]
        self.odds = [corrections.token_odds(classes, row, int(t), MARGIN) for row, t in zip(rows, tokens, strict=True)]
        self.unsteered = readout.Competition.of(logits, 1, MARGIN)
        self.steered = readout.Competition.of(logits, readout.COMPETITORS, MARGIN)
        self.bound = -torch.log_softmax(logits, -1)[torch.arange(len(tokens)), tokens].sum().item() / np.log(2) / 8


def encode(
    samples: list[Sample],
    tables: Tables,
    rate: Fraction,
    effort: int,
    steering: readout.Steering,
    classes: corrections.TokenClasses,
) -> float:
    """Encode all samples at one rate, filling the log; returns memory and corrections over the bound."""
    LoggedEncoder.log = []
    size = 0.0
    for first in range(0, len(samples), 32):
        batch = samples[first : first + 32]
        moves: list[np.ndarray | None] = [None] * len(batch)
        if rate:
            chunks = [
                readout.Chunk(
                    s.tokens,
                    s.steered,
                    readout.MissCosts.of(tables, classes, s.steered, s.tokens, s.odds, s.own, MARGIN),
                )
                for s in batch
            ]
            memories = readout.fit(chunks, steering, tables, rate, MARGIN, effort, torch.device("cpu"))
            moves = [steering.all_moves(s.steered.ids, m, rate) for s, m in zip(batch, memories, strict=True)]
        for s, move in zip(batch, moves, strict=True):
            competition = s.steered if rate else s.unsteered
            data = greedy.correct(s.tokens, competition, s.odds, s.own, move, tables, classes, MARGIN).data
            size += len(data) + readout.memory_bits(len(s.tokens), rate) / 8
    return size / sum(s.bound for s in samples)


@torch.no_grad()
def main() -> None:
    """Read the folder, run the LM once, train every regime, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="a model folder (memcodec models path NAME)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--searched", type=int, default=150, help="chunks used at the rates that need a search")
    parser.add_argument("--effort", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "memcodec" / "tables.json")
    arguments = parser.parse_args()

    greedy.CorrectionEncoder = LoggedEncoder  # type: ignore[misc]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    lm = FrozenLM.load(arguments.model, tokenizer.encode("...", add_special_tokens=False))
    classes, steering = corrections.TokenClasses(lm.vocabulary), readout.Steering(lm.head)
    samples = []
    for path in sorted(arguments.folder.iterdir()):
        ids = tokenizer.encode(path.read_text(), add_special_tokens=False)
        rows = [np.array(ids[i : i + 200], dtype=np.int64) for i in range(0, len(ids) - 199, 200)]
        for tokens in rows:
            hidden = lm.hidden(torch.from_numpy(tokens)[None])[0]
            samples.append(Sample(tokens, hidden, lm, classes))
        print(f"{path.name}: {len(rows)} chunks", flush=True)
    picked = [samples[i] for i in np.linspace(0, len(samples) - 1, min(arguments.searched, len(samples))).astype(int)]

    entries = {}
    tables = starting_tables()
    for regime, rate in RATES.items():
        used = picked if Fraction(rate) else samples
        for _ in range(arguments.rounds + 2 * (regime == "0")):
            size = encode(used, tables, Fraction(rate), arguments.effort, steering, classes)
            tables = tables_from(LoggedEncoder.log)
            print(f"rate {rate}: {size:.4f} of the bound before this round's tables", flush=True)
        entries[regime] = {"prior_level": tables.prior_level, "hit": tables.hit.tolist(), "miss": tables.miss.tolist()}
    entries["prompt"] = entries["8"]  # mostly hits as well; benchmarks/memory_tokens.py says how far that holds
    arguments.out.write_text(json.dumps(entries, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
