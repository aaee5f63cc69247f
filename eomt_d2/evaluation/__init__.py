"""Evaluation: the standard evaluators, chosen by a data set's ``evaluator_type``."""

from eomt_d2.evaluation.build import build_evaluator, evaluated_tasks
from eomt_d2.evaluation.cityscapes import (
    CityscapesInstanceEvaluator,
    CityscapesPanopticEvaluator,
    CityscapesSemanticEvaluator,
)
from eomt_d2.evaluation.instance import InstanceEvaluator
from eomt_d2.evaluation.panoptic import PanopticEvaluator
from eomt_d2.evaluation.semantic import SemanticSegmentationEvaluator

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesPanopticEvaluator",
    "CityscapesSemanticEvaluator",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemanticSegmentationEvaluator",
    "build_evaluator",
    "evaluated_tasks",
]
