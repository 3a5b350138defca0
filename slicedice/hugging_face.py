"""Our models in the words of Hugging Face `transformers`: config, names of weights, tokenizer files.

A dense model is its OLMo 2, a layer of one expert set its FlexOlmo. Everything here is a function of specs and
arrays; nothing imports torch or `transformers`, which are for who reads what is written, and for the tests that do.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from slicedice.spec import RunSpec

_LAYER = "model.layers.{layer}."
_EXPERT = _LAYER + "mlp.experts.{expert}."

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "head": "lm_head.weight",
    "blocks.attention.query": _LAYER + "self_attn.q_proj.weight",
    "blocks.attention.key": _LAYER + "self_attn.k_proj.weight",
    "blocks.attention.value": _LAYER + "self_attn.v_proj.weight",
    "blocks.attention.out": _LAYER + "self_attn.o_proj.weight",
    "blocks.attention.query_norm.scale": _LAYER + "self_attn.q_norm.weight",
    "blocks.attention.key_norm.scale": _LAYER + "self_attn.k_norm.weight",
    "blocks.attention_norm.scale": _LAYER + "post_attention_layernorm.weight",
    "blocks.moe_norm.scale": _LAYER + "post_feedforward_layernorm.weight",
    "blocks.moe.always_on.gate": _LAYER + "mlp.gate_proj.weight",
    "blocks.moe.always_on.up": _LAYER + "mlp.up_proj.weight",
    "blocks.moe.always_on.down": _LAYER + "mlp.down_proj.weight",
    "blocks.moe.sets.0.router": _LAYER + "mlp.gate.weight",
    "blocks.moe.sets.0.experts.gate": _EXPERT + "gate_proj.weight",
    "blocks.moe.sets.0.experts.up": _EXPERT + "up_proj.weight",
    "blocks.moe.sets.0.experts.down": _EXPERT + "down_proj.weight",
}
"""What each of our parameters, by its path in the decoder, is called there; by layer and expert where it has those."""


class ExportError(ValueError):
    """A run that cannot be exported, and why."""


def refusal(spec: RunSpec) -> str:
    """Why a run's model has no counterpart in `transformers`; "" if it has one."""
    layer, router = spec.model.layer, spec.router
    if layer.is_dense:
        return ""
    if layer.generalist:
        return (
            f"its layers have a generalist (model.generalist = {layer.generalist}), an expert that is always on beside "
            "the routed ones, and FlexOlmo has none"
        )
    if len(layer.experts) > 1:
        return (
            f"its layers are heterogeneous (model.experts = {' + '.join(map(str, layer.experts))}), and FlexOlmo has "
            "one set of experts of one size"
        )
    if router.capacity_factor is not None:
        return (
            f"it was trained with a capacity (router.kind = {router.kind}, router.capacity_factor = "
            f"{router.capacity_factor:g}), and FlexOlmo drops no token: evaluated dropless, it is another model than "
            "the one whose losses the run has"
        )
    if router.gamma:
        return (
            f"it was trained with loss-free balancing (router.gamma = {router.gamma:g}), whose bias takes part in "
            "choosing experts, and FlexOlmo's router has none"
        )
    return ""


def odd_width(spec: RunSpec) -> int:
    """The experts' width where it is no multiple of 4, which PyTorch's grouped product wants; else 0."""
    widths = [spec.model.width(experts.g) for experts in spec.model.layer.experts]
    return next((width for width in widths if width % 4), 0)


def config(spec: RunSpec, end_of_document: int) -> dict[str, Any]:
    """The fields of `config.json`.

    Args:
      spec: a run for which `refusal` gives no reason.
      end_of_document: the token that ends a document.
    """
    # Imported here: who catches an `ExportError` needs no JAX.
    from slicedice.model.norm import NORM_EPS, ROPE_THETA

    model, layer = spec.model, spec.model.layer
    common = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "hidden_act": "silu",
        "max_position_embeddings": spec.data.sequence_length,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rope_theta": ROPE_THETA,  # where transformers 4 reads it, which has another default
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "dtype": "float32",  # of the weights, whatever training computed in
        "bos_token_id": None,
        "eos_token_id": end_of_document,
        "pad_token_id": None,  # its embedding would have no gradient there, and here it is the end of a document
    }
    if layer.is_dense:
        ours = {"intermediate_size": model.width(Fraction(1))}
        return {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", **common, **ours}
    (experts,) = layer.experts
    return {
        "architectures": ["FlexOlmoForCausalLM"],
        "model_type": "flex_olmo",
        **common,
        "intermediate_size": model.width(experts.g),
        "num_experts": experts.n,
        "num_experts_per_tok": experts.k,
        "norm_topk_prob": False,
        "output_router_logits": False,
        # Theirs is k times ours in a model of one layer, and of the same size in others.
        "router_aux_loss_coef": (spec.router.alpha or 0.0) / experts.k,
    }


def generation_config(end_of_document: int) -> dict[str, Any]:
    """The fields of `generation_config.json`: text ends with the document, and what is shorter is padded with that."""
    return {"do_sample": False, "bos_token_id": None, "eos_token_id": end_of_document, "pad_token_id": end_of_document}


def named(leaves: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters, or their gradients, by the names they have in a checkpoint of `transformers`.

    Args:
      leaves: our arrays by path; those of blocks have a leading axis of layers, those of experts then one of experts.

    Yields:
      Names and views, one for each layer and expert. Matrices are [out, in] there and [in, out] here.

    Raises:
      ExportError: a path is not in `NAMES`.
    """
    for path, leaf in leaves.items():
        if path not in NAMES:
            raise ExportError(f"the parameter {path} has no name in transformers")
        pattern, leaf = NAMES[path], np.asarray(leaf)
        layers = range(leaf.shape[0]) if "{layer}" in pattern else (None,)
        for layer in layers:
            of_layer = leaf if layer is None else leaf[layer]
            experts = range(of_layer.shape[0]) if "{expert}" in pattern else (None,)
            for expert in experts:
                array = of_layer if expert is None else of_layer[expert]
                name = pattern.format(layer=layer, expert=expert)
                yield name, array if path == "embedding" or array.ndim == 1 else array.T


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in files of at most `limit` bytes, in order; an array that is larger has a file of its own."""
    files: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not files or size > room:
            files.append([])
            room = limit
        files[-1].append(name)
        room -= size
    return files


def leaves(params: Any) -> dict[str, np.ndarray]:
    """The arrays of an `nnx.State` of parameters, or of their gradients, by path: the keys of `NAMES`."""
    from flax import nnx

    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
