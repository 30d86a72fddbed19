"""Peak memory of this process, or of its GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> int:
    """Bytes: the high-water mark of resident memory, or of allocations on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's memory before exec
        line = next((text for text in status.read_text().splitlines() if text.startswith("VmHWM")), None)
        if line:
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
