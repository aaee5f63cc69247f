"""From the patch grid to a finer or coarser pixel grid."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelLayerNorm", "DownscaleBlock", "UpscaleBlock", "num_upscale_blocks"]


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W) maps."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UpscaleBlock(nn.Module):
    """(B, C, H, W) to (B, C, 2H, 2W): transposed convolution, GELU, depthwise 3x3, LayerNorm.

    EoMT, arXiv 2503.19108, section 3.1 (the mask module).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = ChannelLayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


class DownscaleBlock(UpscaleBlock):
    """(B, C, H, W) to (B, C, H / 2, W / 2): as :class:`UpscaleBlock`, with a 2x2 convolution of
    stride 2 in place of the transposed one."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=2, stride=2)


def num_upscale_blocks(patch_size: int) -> int:
    """Blocks from the patch grid to stride 4 (patch 16: 2), at least one."""
    return max(1, int(math.log2(patch_size)) - 2)
