"""Recurrent layers and cells by torch's names, parameter layouts and initial values, over `gc.scan`.

The product of the inputs with their weight does not depend on the recurrence and is one large product for all times;
inside of the loop are the product of the hidden state and the elementwise rule of the cell.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np

from graphc.dtype import dtype as as_dtype
from graphc.errors import error
from graphc.functional import concat, split, stack, tanh, zeros
from graphc.functional_control import scan
from graphc.nn import functional as F
from graphc.nn import init
from graphc.nn.activation import relu, sigmoid
from graphc.nn.module import Module
from graphc.scope import user_loc
from graphc.tensor import Tensor, common_dtype
from graphc.variable import Parameter

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

Carry = tuple[Tensor, ...]
# (gates of the input, gates of the hidden state, carry) -> the new carry, of which the first is the hidden state
Rule = Callable[[Tensor, Tensor, Carry], Carry]


def lstm_rule(x: Tensor, hidden: Tensor, carry: Carry) -> Carry:
    """Gates input, forget, cell, output. Source: Gers, Schmidhuber and Cummins, "Learning to forget", Neural
    Computation 12 (2000)."""
    i, f, g, o = split(x + hidden, 4)
    c = sigmoid(f) * carry[1] + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru_rule(x: Tensor, hidden: Tensor, carry: Carry) -> Carry:
    """Gates reset, update, new; as in torch and cuDNN, the reset gate multiplies the product, not the hidden state.
    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", arXiv 1406.1078."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = split(x, 3), split(hidden, 3)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = tanh(x_n + r * h_n)
    return (n + z * (carry[0] - n),)


def rnn_rule(nonlinearity: str) -> Rule:
    """One gate. Source: Elman, "Finding structure in time", Cognitive Science 14 (1990). Raises GC0217."""
    functions: dict[str, Callable[[Any], Tensor]] = {"tanh": tanh, "relu": relu}
    if nonlinearity not in functions:
        raise error("GC0217", f"the nonlinearity of an RNN is 'tanh' or 'relu', not {nonlinearity!r}", loc=user_loc())
    return lambda x, hidden, carry: (functions[nonlinearity](x + hidden),)


class _Recurrent(Module):
    """What layers and cells share. ``rows``: of a weight, per hidden unit; ``carries``: tensors handed on in time."""

    rows = 1
    carries = 1
    first = ""  # behind the names of the first parameters
    late_bias = False  # bias_hh is added to the product in the loop, and not, with bias_ih, before it
    rule: Rule

    def __init__(self, input_size: int, hidden_size: int, bias: bool):
        if min(input_size, hidden_size) < 1:
            sizes = f"input_size={input_size}, hidden_size={hidden_size}"
            raise error("GC0217", f"{type(self).__name__}: sizes are from 1 on, not {sizes}", loc=user_loc())
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias

    def _parameters(self, suffix: str, inputs: int, dtype: Any) -> None:
        """weight_ih [rows·H, inputs], weight_hh [rows·H, H], and with ``bias`` bias_ih and bias_hh [rows·H]."""
        rows, bound = self.rows * self.hidden_size, 1 / sqrt(self.hidden_size)
        shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, self.hidden_size)}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}  # type: ignore[dict-item]
        for name, shape in shapes.items():
            array = np.zeros(shape, as_dtype(dtype).numpy)
            setattr(self, name + suffix, init.uniform_(Parameter(array), -bound, bound))

    def _inputs(self, x: Tensor, suffix: str) -> Tensor:
        """The gates' share of the inputs ``x`` [..., inputs]: [..., rows·H]."""
        weight: Tensor = getattr(self, f"weight_ih{suffix}")
        if not x.ndim or x.shape[-1] != weight.shape[1]:
            message = f"{type(self).__name__}: the last dimension of the input ({x.type}) must be {weight.shape[1]}"
            raise error("GC0107", message, loc=user_loc(), hint="input_size is the number of features of each time")
        if not self.bias:
            return F.linear(x, weight)
        early, late = getattr(self, f"bias_ih{suffix}"), getattr(self, f"bias_hh{suffix}")
        return F.linear(x, weight, early if self.late_bias else early + late)

    def _step(self, gates: Tensor, carry: Carry, suffix: str) -> Carry:
        bias = getattr(self, f"bias_hh{suffix}") if self.bias and self.late_bias else None
        return self.rule(gates, F.linear(carry[0], getattr(self, f"weight_hh{suffix}"), bias), carry)

    def _carry(self, given: Any, shape: tuple[int, ...], x: Tensor) -> Carry:
        """The first carry: ``given`` by the caller (a tensor, or a tuple where there are several), or zeros."""
        if given is None:
            weight = getattr(self, f"weight_hh{self.first}")
            return (zeros(shape, dtype=common_dtype(x, weight)),) * self.carries
        carry: Carry = tuple(given) if isinstance(given, tuple | list) else (given,)
        if len(carry) != self.carries or any(t.shape != shape for t in carry):
            found = ", ".join(str(t.shape) for t in carry)
            message = f"{type(self).__name__}: the first state is {self.carries} of shape {shape}, not {found}"
            raise error("GC0217", message, loc=user_loc(), hint="leave it out to start with zeros")
        return carry

    def _returned(self, carry: Carry) -> Any:
        return carry if self.carries > 1 else carry[0]


# Cells ---------------------------------------------------------------------------------------------------------------


class _Cell(_Recurrent):
    """One step: parameters weight_ih, weight_hh, bias_ih, bias_hh."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = "float32"):
        super().__init__(input_size, hidden_size, bias)
        self._parameters("", input_size, dtype)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """x [B, I] or [I], the state [B, H] or [H] (zeros if None); returns the new state."""
        carry = self._carry(state, (*x.shape[:-1], self.hidden_size), x)
        return self._returned(self._step(self._inputs(x, ""), carry, ""))


class LSTMCell(_Cell):
    """One step of an LSTM: ``h, c = cell(x, (h, c))`` with x [B, I], h and c [B, H]; rows of the weights: input,
    forget, cell, output gate (see `lstm_rule`)."""

    rows, carries, rule = 4, 2, staticmethod(lstm_rule)


class GRUCell(_Cell):
    """One step of a GRU: ``h = cell(x, h)`` with x [B, I], h [B, H]; rows of the weights: reset, update, new gate (see
    `gru_rule`)."""

    rows, late_bias, rule = 3, True, staticmethod(gru_rule)


class RNNCell(_Cell):
    """One step of an Elman network: ``h = cell(x, h)`` is tanh (or relu) of W_ih x + b_ih + W_hh h + b_hh."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = "float32",
    ):
        super().__init__(input_size, hidden_size, bias, dtype=dtype)
        self.nonlinearity, self.rule = nonlinearity, rnn_rule(nonlinearity)


# Layers --------------------------------------------------------------------------------------------------------------


class _Layers(_Recurrent):
    """Layers over time: parameters weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, and so on for each layer, with
    ``_reverse`` behind for the direction from the end. ``dropout`` is applied between layers while training."""

    first = "_l0"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
    ):
        super().__init__(input_size, hidden_size, bias)
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bidirectional = bidirectional
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            inputs = hidden_size * len(self._directions) if layer else input_size
            for direction in self._directions:
                self._parameters(f"_l{layer}{direction}", inputs, dtype)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x [T, B, I] ([B, T, I] with ``batch_first``) or [T, I]; the state [layers·directions, B, H] (or without B),
        zeros if None. Returns the hidden states of the last layer [T, B, directions·H] (in the form of x) and the last
        state. Raises GC0107 and GC0217 for shapes that do not fit."""
        if x.ndim not in (2, 3):
            message = f"{type(self).__name__}: the input has 3 dimensions, or 2 without a batch, and is {x.type}"
            raise error("GC0217", message, loc=user_loc(), hint="x[:, None] adds a dimension of size 1")
        batched, swap = x.ndim == 3, x.ndim == 3 and self.batch_first
        x = x.swapaxes(0, 1) if swap else x
        count = self.num_layers * len(self._directions)
        carry = self._carry(state, (count, *x.shape[1:-1], self.hidden_size), x)
        if not batched:
            x, carry = x[:, None], tuple(t[:, None] for t in carry)
        last: list[Carry] = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, training=self.training)
            outputs = []
            for direction in self._directions:
                first = tuple(t[len(last)] for t in carry)
                final, ys = self._run(x, first, f"_l{layer}{direction}", reverse=bool(direction))
                outputs.append(ys)
                last.append(final)
            x = concat(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        final = tuple(stack(parts) for parts in zip(*last, strict=True))
        if not batched:
            x, final = x[:, 0], tuple(t[:, 0] for t in final)
        return x.swapaxes(0, 1) if swap else x, self._returned(final)

    def _run(self, x: Tensor, first: Carry, suffix: str, reverse: bool) -> tuple[Carry, Tensor]:
        """One layer in one direction: the last carry, and the hidden states [T, B, H]."""

        def body(carry: Carry, gates: Tensor) -> tuple[Carry, Tensor]:
            new = self._step(gates, carry, suffix)
            return new, new[0]

        final, ys = scan(body, first, self._inputs(x, suffix), reverse=reverse)
        return final, ys


class LSTM(_Layers):
    """Long short-term memory: ``output, (h, c) = lstm(x, (h0, c0))``, as torch's (see `_Layers` and `lstm_rule`)."""

    rows, carries, rule = 4, 2, staticmethod(lstm_rule)


class GRU(_Layers):
    """Gated recurrent unit: ``output, h = gru(x, h0)``, as torch's (see `_Layers` and `gru_rule`)."""

    rows, late_bias, rule = 3, True, staticmethod(gru_rule)


class RNN(_Layers):
    """Elman network: ``output, h = rnn(x, h0)``, as torch's, with ``nonlinearity`` "tanh" or "relu" (see `_Layers`)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
    ):
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype=dtype)
        self.nonlinearity, self.rule = nonlinearity, rnn_rule(nonlinearity)
