"""The baseline's configs on the shapes data: another network, and the same of everything else."""

import pytest
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from tests.configs.published import ROOT


def settings(name):
    """Every key of a config and its value."""
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.merge_from_file(str(ROOT / "shapes" / "panoptic" / f"{name}.yaml"))

    def flat(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(flat(cfg))


@pytest.mark.parametrize("length", ("tiny", "tiny_long"))
def test_mask2former_differs_from_eomt_in_its_decoders_alone(length):
    eomt, baseline = settings(f"eomt_{length}"), settings(f"mask2former_{length}")
    assert {key for key in eomt if eomt[key] != baseline[key]} == {
        "MODEL.META_ARCHITECTURE",
        "MODEL.MASK_FORMER.HIDDEN_DIM",
        "MODEL.MASK_FORMER.NHEADS",
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD",
        "MODEL.MASK_FORMER.DEC_LAYERS",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
        "OUTPUT_DIR",
    }
    assert baseline["OUTPUT_DIR"] == f"output/shapes_panoptic_mask2former_{length}"
    # One width and as many heads as the ViT; one layer for each key map.
    assert baseline["MODEL.MASK_FORMER.HIDDEN_DIM"] == eomt["MODEL.VIT.EMBED_DIM"]
    heads = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"
    assert baseline["MODEL.MASK_FORMER.NHEADS"] == eomt["MODEL.VIT.NUM_HEADS"] == baseline[heads]
    assert baseline["MODEL.MASK_FORMER.DEC_LAYERS"] - 1 == 3
