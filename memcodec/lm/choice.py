"""Which implementation of the exact LM runs: kernels in Triton, operations in torch, or kernels for the CPU."""

import warnings

from memcodec.errors import MachineError, MemcodecWarning, MissingDependencyError, first_line
from memcodec.lm import cpu
from memcodec.lm.sequences import Implementation
from memcodec.lm.team import Team
from memcodec.lm.weight_cache import AnyWeights


def implementation_of(
    weights: AnyWeights, device: str, kernels: str, fallback: bool | None, team: Team
) -> tuple[str, Implementation]:
    """The first implementation that passes the self-test, and the device that it runs on.

    device: as `device.select_device` returns it; kernels, fallback: as in `ExactLM`. With "auto", Triton is
    tried first on "cuda", then torch, then the CPU; which of them failed, and why, is in the text `kernels` of
    the implementation and in a warning. Raises MachineError, and MissingDependencyError for kernels that are asked for
    by name.
    """
    if kernels == "numba" or (kernels == "auto" and device == "cpu"):
        return "cpu", _on_cpu(weights, fallback, team)
    failures = []
    names = ("triton", "torch") if device.startswith("cuda") else ("torch",)
    for name in names if kernels == "auto" else (kernels,):
        try:
            found = _in_triton(weights, device) if name == "triton" else _in_torch(weights, device, fallback)
        except (MachineError, MissingDependencyError) as error:
            if kernels != "auto":
                raise
            failures.append(str(error))
        else:
            return device, _told(found, failures)
    return "cpu", _told(_on_cpu(weights, fallback, team), failures)


def _told(found: Implementation, failures: list[str]) -> Implementation:
    """The implementation, with what was tried before it."""
    for failure in failures:
        tell_failure(found, failure, found.kernels.split(";")[0])
    return found


def tell_failure(implementation: Implementation, failure: str, instead: str) -> None:
    """Add a failed test to the description of an implementation, and warn. instead: what does the work."""
    implementation.kernels += f"; {failure}"
    warnings.warn(f"{failure}: {instead} instead", MemcodecWarning, stacklevel=3)


def _on_cpu(weights: AnyWeights, fallback: bool | None, team: Team) -> Implementation:
    slow = cpu.needs_fallback(team) if fallback is None else fallback
    return cpu.CpuLM(weights, team, slow)


def _in_torch(weights: AnyWeights, device: str, fallback: bool | None) -> Implementation:
    from memcodec.lm import device as torch_device
    from memcodec.lm.operations import WITHOUT_FLOAT64

    try:
        if fallback is None:
            fallback = torch_device.needs_fallback(device) or not torch_device.has_byte_products(device)
        return torch_device.DeviceLM(weights.plain(), device, fallback)
    except (RuntimeError, TypeError) as error:
        if device not in WITHOUT_FLOAT64 or type(error).__name__ == "OutOfMemoryError":
            raise
        # One of the devices on which nobody has tried memcodec: torch may lack an operation there.
        raise MachineError(f"torch cannot run the model on {device} ({first_line(error)})") from error


def _in_triton(weights: AnyWeights, device: str) -> Implementation:
    from memcodec.lm import gpu

    gpu.check(device)
    return gpu.GpuLM(weights.plain(), device)
