"""Copies between the host and a device for which the host does not wait."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Start to copy an array to a device. Work that is started on the device later will find the copy complete."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    if device.type != "cuda" or not array.size:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[torch.Tensor]) -> Callable[[], list[np.ndarray]]:
    """Start to copy tensors of one device to the host, as they will be when all work started there so far is done.

    Calling the result waits for the copies and returns them.
    """
    device = tensors[0].device
    if device.type != "cuda":
        return lambda: [tensor.numpy() for tensor in tensors]
    # torch reuses pinned memory once nobody holds it. Allocating new memory would take longer than the copy.
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    cuda: Any = torch.cuda
    done = cuda.Event()
    done.record(torch.cuda.current_stream(device))

    def wait() -> list[np.ndarray]:
        done.synchronize()
        return [copy.numpy() for copy in copies]

    return wait
