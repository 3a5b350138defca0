"""The study's 110m scale: about 110m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "110m"
    config.model.d_model = 432
    config.model.layers = 9
    config.model.heads = 9
    config.budget.tokens = 2_200_000_000
    return config
