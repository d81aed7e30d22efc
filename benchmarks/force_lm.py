"""Makes encoders use the LM even if something else is smaller: for scripts with tiny models, which zstd beats.

`store_nothing` in tests/conftest.py does the same for tests.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from memcodec.container import assembly
from memcodec.document import repeats


@contextmanager
def store_nothing(references: bool = False) -> Iterator[None]:
    """Until the block ends, encoders of this process store only bytes that are not text.

    references: repeats still become references, also those that the LM sees.
    """
    least = repeats.LEAST_BYTES if references else sys.maxsize
    with (
        patch.object(assembly, "STORE_SMALLER", False),
        patch.object(repeats, "LEAST_BYTES", least),
        patch.object(repeats, "TOKEN_BYTES", 0),
    ):
        yield
