import pytest
import torch

from eomt_d2.errors import UserError
from eomt_d2.evaluation.outputs import required_output, semantic_labels_of


def test_scores_and_labels_are_the_same_result():
    scores = torch.tensor([[[0.1, 0.9]], [[0.8, 0.2]], [[0.3, 0.3]]])  # (K=3, 1, 2)
    from_scores = semantic_labels_of({"sem_seg": scores}, 3, "data")
    from_labels = semantic_labels_of({"sem_seg_labels": torch.tensor([[1, 0]])}, 3, "data")
    assert from_scores.tolist() == from_labels.tolist() == [[1, 0]]
    assert from_scores.dtype == from_labels.dtype == torch.int64


@pytest.mark.parametrize(
    "key, flag",
    [
        ("panoptic_seg", "PANOPTIC_ON"),
        ("instances", "INSTANCE_ON"),
        ("sem_seg", "SEMANTIC_ON"),
    ],
)
def test_missing_result_names_the_switch(key, flag):
    with pytest.raises(UserError, match=f"my_data needs '{key}'.*TEST.{flag}"):
        required_output({"other": 1}, key, "my_data")


def test_another_number_of_classes_is_an_error():
    with pytest.raises(UserError, match="predicts 4 classes, but my_data has 3"):
        semantic_labels_of({"sem_seg": torch.zeros(4, 2, 2)}, 3, "my_data")
    with pytest.raises(UserError, match=r"predicts classes 0\.\.3, but my_data has 3"):
        semantic_labels_of({"sem_seg_labels": torch.tensor([[0, 3]])}, 3, "my_data")
