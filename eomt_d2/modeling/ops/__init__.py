"""Operators that PyTorch lacks, in plain PyTorch and as kernels. Nothing here is compiled when the
package is installed."""

from .ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

__all__ = ["ms_deform_attn", "ms_deform_attn_reference"]
