"""The public names: those of the Array API, and what deep learning adds under torch's names."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import graphc as gc
from graphc import nn, optim, random

# The functions of the Array API, 2024.12 (https://data-apis.org/array-api/2024.12/API_specification/), by chapter.
ARRAY_API = {
    "creation": "arange asarray empty empty_like eye full full_like linspace meshgrid ones ones_like tril triu zeros "
    "zeros_like",
    "types": "astype",
    "elementwise": "abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_invert "
    "bitwise_or bitwise_right_shift bitwise_xor ceil clip copysign cos cosh divide equal exp expm1 floor floor_divide "
    "greater greater_equal hypot isfinite isinf isnan less less_equal log log1p log2 log10 logaddexp logical_and "
    "logical_not logical_or logical_xor maximum minimum multiply negative not_equal positive pow reciprocal remainder "
    "round sign signbit sin sinh square sqrt subtract tan tanh trunc",
    "indexing": "take take_along_axis",
    "linear algebra": "matmul matrix_transpose tensordot vecdot",
    "manipulation": "broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat reshape roll "
    "squeeze stack tile unstack",
    "searching": "argmax argmin count_nonzero searchsorted where",
    "sorting": "argsort sort",
    "statistics": "cumulative_prod cumulative_sum max mean min prod std sum var",
    "utility": "all any diff",
}
# What it has beside these: no shape is known while tracing (nonzero and the set functions), there are no complex
# numbers (conj, imag, real), no bits of floats (nextafter), and what is about dtypes, devices and DLPack is NumPy's.

FUNCTIONS = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d max_pool2d max_pool3d "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d pad one_hot top_k cumsum cumprod einsum logsumexp erf gelu silu softplus "
    "mish hardswish elu leaky_relu scaled_dot_product_attention rope batch_norm layer_norm group_norm rms_norm "
    "instance_norm interpolate dropout scatter_add scatter_along_axis cross_entropy binary_cross_entropy_with_logits "
    "mse_loss l1_loss huber_loss kl_div nll_loss contrastive_loss cosine_embedding_loss cosine_similarity"
)
RANDOM = "normal uniform bernoulli categorical"
INITIALISERS = (
    "xavier_uniform_ xavier_normal_ kaiming_uniform_ kaiming_normal_ trunc_normal_ orthogonal_ normal_ uniform_ zeros_ "
    "ones_ constant_"
)
OPTIMIZERS = (
    "SGD Adam AdamW Lion Adafactor RMSprop EMA constant linear cosine one_cycle step_decay exponential accumulate"
)

# Activations and losses as modules: torch's name of the module, ours of the function.
MODULES = {
    "CELU": "celu", "ELU": "elu", "GELU": "gelu", "GLU": "glu", "SELU": "selu", "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish", "Hardtanh": "hardtanh", "LeakyReLU": "leaky_relu", "LogSigmoid": "log_sigmoid",
    "LogSoftmax": "log_softmax", "Mish": "mish", "PReLU": "prelu", "ReLU": "relu", "ReLU6": "relu6", "SiLU": "silu",
    "Sigmoid": "sigmoid", "Softmax": "softmax", "Softplus": "softplus", "Softsign": "softsign", "Tanh": "tanh",
    "BCELoss": "binary_cross_entropy", "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "CosineEmbeddingLoss": "cosine_embedding_loss", "CosineSimilarity": "cosine_similarity",
    "CrossEntropyLoss": "cross_entropy", "HuberLoss": "huber_loss", "KLDivLoss": "kl_div", "L1Loss": "l1_loss",
    "MSELoss": "mse_loss", "NLLLoss": "nll_loss", "SmoothL1Loss": "smooth_l1_loss",
    "ContrastiveLoss": "contrastive_loss",
}  # fmt: skip


@pytest.mark.parametrize("chapter", ARRAY_API)
def test_the_array_api(chapter: str) -> None:
    assert not [name for name in ARRAY_API[chapter].split() if not callable(getattr(gc, name, None))]


@pytest.mark.parametrize(
    ("module", "names"), [(gc, FUNCTIONS), (random, RANDOM), (nn.init, INITIALISERS), (optim, OPTIMIZERS)]
)
def test_what_deep_learning_adds(module: ModuleType, names: str) -> None:
    assert not [name for name in names.split() if not callable(getattr(module, name, None))]


def test_each_activation_and_loss_is_a_module_and_a_function() -> None:
    losses_and_activations = {*nn.layers_activation.__all__, *nn.layers_loss.__all__}
    assert losses_and_activations == MODULES.keys()
    assert all(issubclass(getattr(nn, name), nn.Module) for name in MODULES)
    assert all(callable(getattr(gc, function)) for function in MODULES.values())


@pytest.mark.parametrize("module", [gc, nn, optim, nn.init, random])
def test_public_functions_have_annotations(module: ModuleType) -> None:
    values = [getattr(module, name) for name in dir(module) if not name.startswith("_")]
    public = [value for value in values if inspect.isfunction(value)]
    assert not [f.__name__ for f in public if inspect.signature(f).return_annotation is inspect.Signature.empty]
