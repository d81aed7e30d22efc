"""Making the site that settings describe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcodec.memory.site import Site
from memcodec.settings import Prompt, Readout

if TYPE_CHECKING:
    from memcodec.lm.model import ExactLM


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

    return ReadoutSite(share_steps(settings), settings, Steering.of(lm.head), lm.team)
