import numpy as np
import pytest
import torch
from iopath.common.file_io import PathManager
from safetensors.torch import load_file, save_file

from eomt_d2.checkpoint.conversion import (
    check_destination,
    check_ending,
    fit_strictly,
    read_foreign,
    write_weights,
)
from eomt_d2.errors import UserError

from .foreign import our_eomt


def test_arrays_become_tensors_by_our_names(tmp_path):
    path = str(tmp_path / "vit.safetensors")
    save_file({"register_tokens": torch.ones(1, 4, 8), "mask_token": torch.zeros(1, 8),
               "patch_embed.proj.weight": torch.ones(8, 3, 2, 2),
               "norm.weight": torch.arange(8.0)}, path)  # fmt: skip
    tensors, title = read_foreign(path, PathManager(), source="dinov2")
    assert title == "DINOv2's ViT"
    assert tensors["reg_token"].shape == (1, 4, 8)
    assert tensors["norm.weight"].tolist() == list(np.arange(8.0))


def test_only_what_the_model_has_is_kept():
    model = our_eomt("dinov2")
    weights = {**model.state_dict(), "extra.weight": torch.ones(1)}
    del weights["class_head.bias"]
    fitted, lines = fit_strictly(weights, model)
    assert "extra.weight" not in fitted
    assert lines == ["Not in the file: class_head.bias", "Not in the model, so left out: extra"]


def test_another_shape_is_refused():
    weights = our_eomt("dinov2", num_queries=3).state_dict()
    with pytest.raises(UserError, match="query_embed.weight is 3x32 in the file and 7x32 in the"):
        fit_strictly(weights, our_eomt("dinov2"))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_tensors_that_share_memory_are_written(tmp_path, ending):
    both = torch.arange(6.0).reshape(2, 3)
    path = str(tmp_path / f"w.{ending}")
    write_weights(path, {"a": both, "b": both.t()}, "model")
    if ending == "pth":
        read = torch.load(path, weights_only=True)["model"]
    else:
        read = load_file(path)
    assert read["b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(UserError, match="exists already"):
        check_destination(path)


def test_other_endings_are_refused():
    with pytest.raises(UserError, match=r"model.onnx must end in .pth or .safetensors"):
        check_ending("model.onnx")
