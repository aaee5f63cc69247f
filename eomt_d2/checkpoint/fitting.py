"""Making weights fit a model: its ViT's place and sizes, its queries; and whether they do fit."""

from torch import Tensor, nn

from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT

from .deltas import is_delta
from .heads import fit_queries
from .vit_weights import fit_vit_weights
from .wording import shape_text

__all__ = ["check_vits", "fit_to_model"]

_PATCHES = "patch_embed.proj.weight"


def fit_to_model(
    weights: dict[str, Tensor], model: nn.Module, *, new_task: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Bring weights to the names and sizes of a model, as far as that is possible.

    Args:
        weights: by our names; of a whole model, or of a ViT alone.
        model: every :class:`ViT` inside gets position and patch embeddings of its size.
        new_task: also fit the queries, see :func:`~.heads.fit_queries`.

    Returns:
        The weights, and a line for each tensor that was changed.

    Raises:
        UserError: if the weights are a difference to weights that are needed too.
    """
    if is_delta(weights):
        raise UserError(
            "The weights are differences to those of DINOv3, without which they say nothing: run "
            "tools/convert_checkpoint.py with --base and DINOv3's own file, and give its result as "
            "MODEL.WEIGHTS."
        )
    vits = _vits(model)
    weights, changes = _placed_in_vit(weights, vits), []
    for prefix, vit in vits.items():
        changes += fit_vit_weights(weights, vit, prefix)
    if new_task:
        changes += fit_queries(weights, model.state_dict())
    return weights, changes


def check_vits(weights: dict[str, Tensor], model: nn.Module, *, advice: str = "") -> None:
    """Refuse weights that are not wholly those of a ViT.

    Missing ones would stay as initialised, and left over ones (register tokens, LayerScale) belong
    to another network.

    Args:
        weights: fitted to the model.
        model: any network.
        advice: what else the user can do, at the end of the message.

    Raises:
        UserError: if a tensor of one of the model's ViTs is missing, superfluous or of another
            shape.
    """
    for prefix, vit in _vits(model).items():
        problems = []
        wanted = vit.state_dict(prefix=prefix)
        for name, tensor in wanted.items():
            if name not in weights:
                problems.append(f"{name} is missing")
            elif weights[name].shape != tensor.shape:
                problems.append(
                    f"{name} is {shape_text(weights[name].shape)} instead of "
                    f"{shape_text(tensor.shape)}"
                )
        # Backbones that do without the last norm leave it out.
        for name in sorted(weights.keys() - wanted.keys()):
            if name.startswith(prefix) and not name.startswith(f"{prefix}norm."):
                problems.append(f"{name} is in the file only")
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"The weights do not fit the ViT of the config: {'; '.join(problems[:3])}{more}; "
                f"give weights of the network and the ViT that the config names{advice}."
            )


def _vits(model: nn.Module) -> dict[str, ViT]:
    return {
        f"{name}." if name else "": module
        for name, module in model.named_modules()
        if isinstance(module, ViT)
    }


def _placed_in_vit(weights: dict[str, Tensor], vits: dict[str, ViT]) -> dict[str, Tensor]:
    """Move a ViT alone, or a plain ViT ``backbone.``, to where the model has its ViT."""
    if len(vits) != 1:
        return dict(weights)
    ((prefix, vit),) = vits.items()
    if _PATCHES in weights:
        return {prefix + name: tensor for name, tensor in weights.items()}
    own = {f"backbone.{name}" for name in vit.state_dict()} if prefix != "backbone." else set()
    return {
        prefix + name.removeprefix("backbone.") if name in own else name: tensor
        for name, tensor in weights.items()
    }
