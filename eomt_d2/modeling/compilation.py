"""Compiling one method of a module in place."""

from typing import Any

import torch
from torch import nn

from ..errors import UserError

__all__ = ["COMPILE_MODES", "CompiledPredict"]

COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")

# Versions of a function that torch keeps before it gives up and runs it uncompiled. Training and
# evaluation, and each step of mask annealing, have one of their own.
_MAX_VERSIONS = 64


class CompiledPredict(nn.Module):
    """A module whose method ``predict`` can be replaced by its compiled form.

    Parameters keep their names, which a module wrapped by ``torch.compile`` does not do, so
    checkpoints and distributed training see the same module. Copies and pickles of the module
    compile anew: a compiled method belongs to the module it was made for.
    """

    compile_mode: str = "off"

    def compile_predict(self, mode: str) -> None:
        """Compile ``predict``, once for every size of its input, when it is next called.

        Args:
            mode: "off"; "default"; "reduce-overhead" (with CUDA graphs); "max-autotune" (these,
                and the fastest of several kernels, measured).

        Raises:
            UserError: if the mode is none of these.
        """
        if mode not in COMPILE_MODES:
            raise UserError(f"MODEL.COMPILE is {mode!r}: choose from {COMPILE_MODES}.")
        self.__dict__.pop("predict", None)
        self.compile_mode = mode
        if mode != "off":
            config = torch._dynamo.config
            config.cache_size_limit = max(config.cache_size_limit, _MAX_VERSIONS)
            self.predict = torch.compile(self.predict, dynamic=False, mode=mode)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "predict"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.compile_predict(self.compile_mode)
