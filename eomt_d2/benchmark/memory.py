"""Peak memory of one step: that of tensors, on a CPU as on a GPU."""

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_memory", "resident_bytes", "tensors_of"]


def peak_memory(run: Callable[[], object], device: str, resident: Iterable[Tensor]) -> int:
    """Bytes of tensors at the worst moment of a step: what it starts with and what it adds.

    On a GPU PyTorch's allocator keeps the peak. On a CPU PyTorch's profiler lists every allocation
    and release of tensor memory; the process's own peak would include the libraries, freed memory
    that the C library keeps, and all other models. Neither sees what a library allocates by itself.

    Args:
        run: the step; it has run before, so that nothing is set up in it.
        device: "cpu" or "cuda".
        resident: the tensors that the step needs and that exist before it: weights, buffers, state
            of the optimizer, inputs. Others that exist (of other models) do not count.
    """
    held = resident_bytes(resident)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return held + torch.cuda.max_memory_allocated() - before
    # Else the profiler tells on stderr that it starts and that it finds no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [
        event
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    ]
    added = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        added += event.nbytes()
        peak = max(peak, added)
    return held + peak


def resident_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind some tensors; what several share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def tensors_of(thing: object) -> list[Tensor]:
    """All tensors in modules, optimizers, Instances, structures, dicts and sequences of these."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, nn.Module):
        return [*thing.parameters(), *thing.buffers()]
    if isinstance(thing, torch.optim.Optimizer):
        return tensors_of(list(thing.state.values()))
    if isinstance(thing, dict):
        return tensors_of(list(thing.values()))
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors_of(part)]
    if hasattr(thing, "get_fields"):
        return tensors_of(thing.get_fields())
    return tensors_of(thing.tensor) if hasattr(thing, "tensor") else []
