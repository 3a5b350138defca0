"""For tests: the smallest model in which every part does something, seconds a run on one core."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "smoke"
    config.compute_dtype = "float32"  # bfloat16 is emulated on CPU
    config.model.d_model = 16
    config.model.layers = 2
    config.model.heads = 2
    config.model.vocab_size = 256
    config.router.group = 0
    config.data.sequence_length = 32
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 5
    config.budget.tokens = 60 * 8 * 32
    config.budget.batch_size = 8
    config.evaluation.tokens = 2048
    config.execution.micro_batch = 0
    return config
