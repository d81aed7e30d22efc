"""The readout site: a memory of bits that steers the LM's predictions (spec/FORMAT.md, "Memories").

Position t sees a window of the memory. Seeded parities of the window, multiplied by a seeded sign matrix of that
position, form a vector that is added to the LM's last hidden state. Its effect on the logits of the best tokens,
multiplied by a factor that depends on the LM's entropy, is added to these logits. New bits enter the window in
proportion to the LM's entropy, which the encoder and the decoder both know exactly. `steering` computes this for both;
`search` finds the bits under which the tokens of a chunk become likely.
"""

from collections.abc import Callable

import numpy as np

from memcodec.coding.distribution import Predictions
from memcodec.coding.steering import Steering
from memcodec.errors import FormatError
from memcodec.lm.team import Team
from memcodec.memory.search import search
from memcodec.memory.site import Predict
from memcodec.progress import Report
from memcodec.settings import MOST_SHARE, SHARE_STEPS

Search = Callable[[list[Predictions], Steering, int, int, Team], list[bytes]]  # see `search`


class ReadoutSite:
    """Memories of bits that steer the LM's predictions."""

    name = "readout"
    fits_apart = True

    def __init__(
        self,
        share: int,
        effort: int = 0,
        steering: Steering | None = None,
        team: Team | None = None,
        find: Search | None = None,
    ) -> None:
        """share: in steps of 1/1024. The others are needed by `fit` only. find: a `search` for a device."""
        self.share = share
        self.fields: tuple[int, ...] = (share,)
        self._effort = effort
        self._steering = steering
        self._team = team
        self._find = find

    @classmethod
    def in_file(cls, fields: tuple[int, ...]) -> "ReadoutSite":
        """The site of a file, for a decoder. Raises FormatError."""
        if len(fields) != 1 or fields[0] > MOST_SHARE:
            raise FormatError("damaged index: a memory share out of range")
        return cls(fields[0])

    def vectors(self, memory: bytes) -> np.ndarray | None:
        """What the LM reads between the prefix and the first token: nothing."""
        return None

    def readable(self, memory: bytes) -> bytes:
        """The same memory: any bits are one."""
        return memory

    def fit(self, chunks: list[np.ndarray], predict: Predict, report: Report) -> tuple[list[bytes], list[Predictions]]:
        """Predict the chunks, then search their memories."""
        predictions = predict([None] * len(chunks))
        assert self._steering is not None and self._team is not None
        memories = (self._find or search)(predictions, self._steering, self.share, self._effort, self._team)
        return memories, predictions


def share_steps(share: float) -> int:
    """A memory share in steps of 1/1024."""
    return round(share * SHARE_STEPS)
