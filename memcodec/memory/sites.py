"""Making the site that settings describe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcodec.lm.choice import tell_failure
from memcodec.memory.site import Site
from memcodec.settings import Prompt, Readout

if TYPE_CHECKING:
    from memcodec.lm.model import ExactLM
    from memcodec.memory.readout import Search


def site_of(lm: "ExactLM", settings: Readout | Prompt, floats: "Callable[[], Any]") -> Site:
    """The site that settings describe, for fits. floats: returns the LM in floating point, called only if needed."""
    if isinstance(settings, Readout):
        return readout_site(lm, settings)
    from memcodec.memory.prompt import PromptSite

    return PromptSite(settings.bits, lm.architecture.hidden, settings, floats, lm.positions)


def readout_site(lm: "ExactLM", settings: Readout) -> Site:
    """The readout site with these settings. Raises EncodeError."""
    from memcodec.coding.steering import Steering
    from memcodec.memory.readout import ReadoutSite, share_steps

    assert settings.share is not None and settings.effort is not None  # `EncodeSettings` and frames give them
    share = share_steps(settings.share)
    find = _search_of(lm) if share else None
    return ReadoutSite(share, settings.effort, Steering.of(lm.head), lm.team, find)


def _search_of(lm: "ExactLM") -> "Search | None":
    """The search for memories on the device of the LM, if the coder is there and the search passes its self-test.

    Otherwise None, after a warning if it fails.
    """
    from memcodec.coding.placed import coder_of, is_on_device

    if not is_on_device(lm):
        return None
    from memcodec.memory import search_gpu

    implementation: Any = lm.implementation
    if failure := search_gpu.failure(str(implementation.device)):
        if failure not in implementation.kernels:  # once for each LM
            tell_failure(implementation, failure, "the CPU searches")
        return None
    return search_gpu.GpuSearch(coder_of(lm))


def site_in_file(name: str, fields: tuple[int, ...], hidden: int) -> Site:
    """The site of a file, for a decoder: by its name and numbers in the index, for an LM of this hidden size.

    Raises FormatError.
    """
    if name == "readout":
        from memcodec.memory.readout import ReadoutSite

        return ReadoutSite.in_file(fields)
    from memcodec.memory.prompt import PromptSite

    return PromptSite.in_file(fields, hidden)
