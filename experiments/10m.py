"""The study's 10m scale: about 10m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "10m"
    config.model.d_model = 48
    config.model.layers = 3
    config.model.heads = 3
    config.budget.tokens = 200_000_000
    return config
