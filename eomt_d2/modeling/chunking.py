"""How much to work on at a time where the whole would not fit into memory."""

import torch

__all__ = ["chunk_numel"]


def chunk_numel(device: torch.device) -> int:
    """Numbers per chunk of work that is done piece by piece.

    4 MB of float32 on a CPU, which its cache holds: post-processing is 1.5 to 2.6 times faster than
    with the 64 MB of other devices, where small chunks cost kernel launches instead.
    """
    return 2**20 if device.type == "cpu" else 2**24
