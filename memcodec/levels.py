"""Levels: one number from fast, finely seekable and large to slow and small (docs/levels.md has what each costs)."""

from dataclasses import dataclass

from memcodec.errors import EncodeError


@dataclass(frozen=True)
class GroupRule:
    """How many groups a text is cut into with `context="auto"`.

    The fewest of at most `longest` tokens each (None: no limit). If that is less than `fewest`, the fewest of at most
    `shortest` tokens, but no more than `fewest`: then a step of the decoder has more rows.
    """

    fewest: int
    shortest: int
    longest: int | None

    def number(self, tokens: int, positions: int, alone: bool = True) -> int:
        """The number of groups, at least 1, of a text of some tokens.

        positions: the number that the LM has for tokens; alone: no other text, whose groups would fill the steps, is
        encoded together with it.
        """
        fewest = min(-(-tokens // self.shortest), self.fewest) if alone else 1
        return max(fewest, 1 if self.longest is None else -(-tokens // min(self.longest, positions)))


@dataclass(frozen=True)
class Level:
    """The settings of a level.

    share, effort: as in `Readout`; chunk_tokens: as in `Codec.encode`, or fewer if the LM has fewer positions.
    """

    rule: GroupRule
    share: float
    effort: int
    chunk_tokens: int = 200


# Chunks of levels 2 to 4 are as long as the longest groups, or as `shortest`: otherwise such a group would be cut into
# two chunks, each with a memory of its own.
LEVELS = {
    1: Level(GroupRule(64, 100, 200), 0.1, 64),
    2: Level(GroupRule(64, 130, 260), 0.1, 128, 260),
    3: Level(GroupRule(48, 175, 350), 0.1, 256, 350),
    4: Level(GroupRule(32, 280, 560), 0.1, 512, 280),
    5: Level(GroupRule(24, 400, 800), 0.1, 1024),
    6: Level(GroupRule(16, 600, 1200), 0.1, 4096),
    7: Level(GroupRule(8, 1000, 2000), 0.1, 4096),
    8: Level(GroupRule(4, 1800, 3600), 0.05, 4096),
    9: Level(GroupRule(1, 1, None), 0.0, 4096, 4096),
}
DEFAULT_LEVEL = 6
FASTEST, BEST = min(LEVELS), max(LEVELS)


def settings_of(level: int) -> Level:
    """The settings of a level. Raises EncodeError for a number that is not a level."""
    if type(level) is not int or level not in LEVELS:
        raise EncodeError(f"level {level!r}: give {FASTEST} (fast) to {BEST} (small)")
    return LEVELS[level]
