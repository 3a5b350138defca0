"""The study's 20m scale: about 20m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "20m"
    config.model.d_model = 96
    config.model.layers = 4
    config.model.heads = 4
    config.budget.tokens = 400_000_000
    return config
