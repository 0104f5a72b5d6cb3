"""The names that models are written with: `graphc` has all of them, and imports this module when the first is used."""

from graphc import nn as nn
from graphc import ops as ops
from graphc import optim as optim
from graphc import random as random
from graphc.dtype import bfloat16 as bfloat16
from graphc.dtype import bool_ as bool_
from graphc.dtype import finfo as finfo
from graphc.dtype import float16 as float16
from graphc.dtype import float32 as float32
from graphc.dtype import float64 as float64
from graphc.dtype import iinfo as iinfo
from graphc.dtype import int8 as int8
from graphc.dtype import int16 as int16
from graphc.dtype import int32 as int32
from graphc.dtype import int64 as int64
from graphc.dtype import uint8 as uint8
from graphc.dtype import uint32 as uint32
from graphc.functional import *  # noqa: F403
from graphc.functional_along import *  # noqa: F403
from graphc.functional_control import *  # noqa: F403
from graphc.functional_einsum import *  # noqa: F403
from graphc.functional_inverse import *  # noqa: F403
from graphc.functional_math import *  # noqa: F403
from graphc.functional_shape import *  # noqa: F403
from graphc.nn.activation import *  # noqa: F403
from graphc.nn.attention import scaled_dot_product_attention as scaled_dot_product_attention
from graphc.nn.conv import *  # noqa: F403
from graphc.nn.functional import *  # noqa: F403
from graphc.nn.loss import *  # noqa: F403
from graphc.nn.metrics import accuracy as accuracy
from graphc.nn.norm import *  # noqa: F403
from graphc.nn.rope import rope as rope
from graphc.random import seed as seed
from graphc.tensor import Tensor as Tensor
from graphc.tensor import TensorLike as TensorLike
from graphc.tracing import Entry as Entry
from graphc.tracing import Spec as Spec
from graphc.tracing import checkpoint as checkpoint
from graphc.tracing import entry as entry
from graphc.tracing import grad as grad
from graphc.tracing import spec as spec
from graphc.tracing import stop_gradient as stop_gradient
from graphc.variable import State as State
from graphc.variable import state as state
