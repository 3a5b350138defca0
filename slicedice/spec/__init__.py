"""What a run *is*: frozen specs, their validation, counts, name and id. Imports no other room and no JAX."""

from slicedice.spec.config import resolve, study_config
from slicedice.spec.errors import SpecError
from slicedice.spec.identity import SCHEMA, canonical_json, from_json, program_key, run_id, run_name
from slicedice.spec.layer import ExpertSet, LayerSpec, moe_layer
from slicedice.spec.model import ModelSpec
from slicedice.spec.run import (
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    Execution,
    OptimizerSpec,
    RouterSpec,
    RunSpec,
)

__all__ = [
    "SCHEMA",
    "BudgetSpec",
    "DataSpec",
    "EvaluationSpec",
    "Execution",
    "ExpertSet",
    "LayerSpec",
    "ModelSpec",
    "OptimizerSpec",
    "RouterSpec",
    "RunSpec",
    "SpecError",
    "canonical_json",
    "from_json",
    "moe_layer",
    "program_key",
    "resolve",
    "run_id",
    "run_name",
    "study_config",
]
