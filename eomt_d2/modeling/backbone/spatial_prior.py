"""The convolutional half of ViT-Adapter (arXiv 2205.08534, section 3.2)."""

from torch import Tensor, nn

from eomt_d2.errors import UserError

from ..upscale import ChannelLayerNorm

__all__ = ["SpatialPrior", "build_norm"]


_NORMS = {
    "SyncBN": nn.SyncBatchNorm,
    "BN": nn.BatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": ChannelLayerNorm,
}


def build_norm(name: str, channels: int) -> nn.Module:
    """A normalisation of (B, channels, H, W) maps.

    Args:
        name: "SyncBN" (over all processes; several of them need GPUs), "BN", "GN" (32 groups) or
            "LN" (over channels).
        channels: of the maps.

    Raises:
        UserError: for another name.
    """
    if name not in _NORMS:
        raise UserError(
            f"MODEL.VIT_ADAPTER.NORM is {name!r}; it must be one of {', '.join(_NORMS)}."
        )
    return _NORMS[name](channels)


class SpatialPrior(nn.Module):
    """Convolutions from the image to maps at strides 4, 8, 16 and 32.

    Args:
        dim: C.
        norm: see :func:`build_norm`.
    """

    CHANNELS = (64, 128, 256, 256)

    def __init__(self, dim: int, norm: str):
        super().__init__()

        def convolution(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
                build_norm(norm, out_channels),
                nn.ReLU(),
            ]

        first = self.CHANNELS[0]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    *convolution(3, first, 2),
                    *convolution(first, first, 1),
                    *convolution(first, first, 1),
                    nn.MaxPool2d(3, stride=2, padding=1),
                )
            ]
        )
        for before, channels in zip(self.CHANNELS, self.CHANNELS[1:], strict=False):
            self.stages.append(nn.Sequential(*convolution(before, channels, 2)))
        self.projections = nn.ModuleList(nn.Conv2d(n, dim, 1) for n in self.CHANNELS)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to four maps (B, C, H / stride, W / stride)."""
        maps, x = [], images
        for stage, projection in zip(self.stages, self.projections, strict=True):
            x = stage(x)
            maps.append(projection(x))
        return maps
