"""The codecs that integrations load by the name of a model: once in a process, whichever of its threads asks first."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from memcodec.codec import Codec, codec_for
from memcodec.container import ModelId, Needs

_loaded: dict[str, Codec] = {}  # by the name or the directory of the model
_loading = Lock()


def loaded(model: str) -> Codec:
    """The codec of a model, by what `Codec.load` takes; loaded once in a process. Raises as `Codec.load`."""
    return _once(model, Codec.load)


def named(model: ModelId) -> Codec:
    """The codec of a model that a file names, loaded once in a process. Raises as `memcodec.codec.codec_for`."""
    return _once(model.name, lambda _: codec_for(Needs(model)))


def _once(model: str, load: Callable[[str], Codec]) -> Codec:
    with _loading:  # a second thread waits for the first one, instead of loading the same weights again
        if model not in _loaded:
            _loaded[model] = load(model)
        return _loaded[model]


class RecentCodecs:
    """The codecs that were used last, by model and primer: each with a primer keeps the state of the LM after it."""

    def __init__(self, most: int) -> None:
        """most: how many are kept."""
        self._most = most
        self._codecs: OrderedDict[tuple[str, bytes], Codec] = OrderedDict()
        self._lock = Lock()

    def get(self, model: str, primer: bytes) -> Codec | None:
        """The codec of a model, by its name, with a primer as bytes, if it is kept."""
        with self._lock:
            found = self._codecs.get((model, primer))
            if found is not None:
                self._codecs.move_to_end((model, primer))
            return found

    def keep(self, model: str, primer: bytes, codec: Codec) -> None:
        """Keep a codec, instead of the one that was not used for the longest time if there are too many."""
        with self._lock:
            self._codecs[model, primer] = codec
            self._codecs.move_to_end((model, primer))
            while len(self._codecs) > self._most:
                self._codecs.popitem(last=False)
