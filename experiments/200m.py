"""The study's 200m scale: about 200m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "200m"
    config.model.d_model = 640
    config.model.layers = 10
    config.model.heads = 10
    config.budget.tokens = 4_000_000_000
    return config
