"""The errors of tracing: code, message, the user's line and the way out, word for word."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pytest
from tracing import trace

import graphc as gc
from graphc import nn, optim
from graphc.errors import CODES, GraphcError
from graphc.tracing import trace_entries, trace_entry

X = gc.spec((4, 3))


def failure(fn, **specs) -> GraphcError:
    with pytest.raises(GraphcError) as caught:
        trace(fn, **specs)
    error = caught.value
    assert error.code in CODES
    assert len(str(error).splitlines()) <= 15
    return error


def check(error: GraphcError, expected: str) -> None:
    """``str(error)`` is ``expected``, in which LINE stands for the number of the line in this file."""
    assert error.loc is not None
    text = str(error).replace(f"{error.loc.file}:{error.loc.line}", "FILE:LINE")
    assert error.loc.file.endswith("test_trace_errors.py")
    assert text == textwrap.dedent(expected).strip("\n")


# Python on traced values ---------------------------------------------------------------------------------------------


def test_control_flow():
    def f(x):
        if x.sum() > 0:
            return {"y": x}
        return {"y": -x}

    check(
        failure(f, x=X),
        """
        GC0201: the truth of a traced value (bool[]) is not known while the model is traced
          at FILE:LINE
            if x.sum() > 0:
          hint: if, while, and, or, not, assert, max() and a < b < c cannot depend on tensors: choose per element
                with gc.where(cond, a, b) or gc.maximum, combine conditions with &, | and ~, or decide by a Python
                value such as a field of Config
        """,
    )


def test_numpy_conversion():
    def f(x):
        return {"y": np.asarray(x)}

    check(
        failure(f, x=X),
        """
        GC0202: a NumPy conversion needs the elements of a traced value (float32[4,3]), which exist only when the program runs
          at FILE:LINE
            return {"y": np.asarray(x)}
          hint: compute with gc functions and return the tensor from the entry: return {'name': x}
        """,  # noqa: E501
    )


def test_item():
    def f(x):
        return {"y": x.sum().item()}

    check(
        failure(f, x=X),
        """
        GC0202: .item() needs the elements of a traced value (float32[]), which exist only when the program runs
          at FILE:LINE
            return {"y": x.sum().item()}
          hint: compute with gc functions and return the tensor from the entry: return {'name': x}
        """,
    )


def test_numpy_functions():
    def f(x):
        return {"y": np.tanh(x)}

    check(
        failure(f, x=X),
        """
        GC0202: np.tanh needs the elements of a traced value (float32[4,3]), which exist only when the program runs
          at FILE:LINE
            return {"y": np.tanh(x)}
          hint: compute with gc functions: gc.tanh, if there is one
        """,
    )


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda x: float(x.sum()), "float() needs"),
        (lambda x: int(x.sum()), "int() needs"),
        (lambda x: math.sqrt(x.sum()), "float() needs"),
        (lambda x: list(range(x.sum())), "use as a Python index needs"),
        (lambda x: list(x), "iteration needs"),
        (lambda x: 1.0 in x, "'in' needs"),
        (lambda x: x.tolist(), ".tolist() needs"),
        (lambda x: x.numpy(), ".numpy() needs"),
        (lambda x: np.concatenate([x, x]), "np.concatenate needs"),
        (lambda x: len(x.sum()), "a scalar tensor has no length"),
    ],
)
def test_escapes(how, what):
    error = failure(lambda x: {"y": how(x)}, x=X)
    assert error.code == "GC0202"
    assert error.message.startswith(what)
    assert error.hint
    assert error.loc.source()


def test_parameters_escape_too():
    w = nn.Parameter(np.zeros(3, np.float32), name="w")
    assert failure(lambda: {"y": np.asarray(w)}).code == "GC0202"
    np.testing.assert_array_equal(np.asarray(w), np.zeros(3))  # outside of an entry: the initial value


def test_mutation():
    def f(x):
        x[0] = 1.0
        return {"y": x}

    check(
        failure(f, x=X),
        """
        GC0203: x[...] = value changes an array in place, and a traced value (float32[4,3]) never changes
          at FILE:LINE
            x[0] = 1.0
          hint: make a new tensor: x = x + 1, gc.where(mask, new, x), or gc.concat([...]) of the parts;
                what must live between runs is gc.state(...) with .assign(value)
        """,
    )


def test_rebinding_is_no_mutation():
    def f(x):
        x += 1
        x *= 2
        return {"y": x}

    trace(f, x=X)


# Shapes and dtypes carry the user's line -----------------------------------------------------------------------------


def test_matmul_shapes():
    def f(x, w):
        return {"y": x @ w}

    check(
        failure(f, x=X, w=gc.spec((4, 5))),
        """
        GC0107: matmul of float32[4,3] and float32[4,5]: the last dimension of the left must be the last but one of the right
          at FILE:LINE
            return {"y": x @ w}
          hint: transpose the left operand: a.T @ b
        """,  # noqa: E501
    )


def test_broadcast_shapes():
    def f(x, b):
        return {"y": x + b}

    check(
        failure(f, x=X, b=gc.spec((4,))),
        """
        GC0101: add: shapes (4, 3) and (4,) do not broadcast
          at FILE:LINE
            return {"y": x + b}
          hint: dimensions must be equal or 1, counted from the last; x[:, None] adds a dimension of 1
        """,
    )


def test_layers_report_the_line_that_calls_them():
    layer = nn.Linear(5, 2)

    def f(x):
        return {"y": layer(x)}

    check(
        failure(f, x=X),
        """
        GC0107: linear: the last dimension of x (float32[4,3]) must be the second of the weight (float32[2,5])
          at FILE:LINE
            return {"y": layer(x)}
          hint: nn.Linear(3, 2) fits this x
        """,
    )


def test_rules_of_ops_report_the_users_line():
    error = failure(lambda x: {"y": gc.concat([x, x[:, :2]])}, x=X)
    assert error.code.startswith("GC01")
    assert error.loc.source() == 'error = failure(lambda x: {"y": gc.concat([x, x[:, :2]])}, x=X)'


@pytest.mark.parametrize(
    ("fn", "code"),
    [
        (lambda x: x.reshape(5, 5), "GC0105"),
        (lambda x: x.sum(axis=2), "GC0104"),
        (lambda x: x[5], "GC0108"),
        (lambda x: x[0, 0, 0], "GC0108"),
        (lambda x: x[::-1], "GC0205"),
        (lambda x: x[x > 0], "GC0205"),
        (lambda x: x["a"], "GC0205"),
        (lambda x: x.astype("complex64"), "GC0208"),
        (lambda x: gc.exp("x"), "GC0208"),
        (lambda x: gc.split(x, 2), "GC0108"),
        (lambda x: gc.squeeze(x, 0), "GC0104"),
        (lambda x: gc.cross_entropy(x, gc.zeros((3,), dtype="int32")), "GC0101"),
        (lambda x: gc.gelu(x, approximate="fast"), "GC0217"),
        (lambda x: gc.dropout(x, 1.5), "GC0217"),
        (lambda x: gc.layer_norm(x, 4), "GC0101"),
        (lambda x: gc.scaled_dot_product_attention(x, x[:, :2], x), "GC0101"),
        (lambda x: gc.einsum("ij,jk->il", x, x), "GC0107"),
        (lambda x: x & x, "GC0103"),
        (lambda x: x + np.zeros((200, 100, 1, 1), np.float32), "GC0212"),
        (lambda x: gc.state(x, name="s"), "GC0207"),
    ],
)
def test_misuse_has_a_code_and_a_line(fn, code):
    error = failure(lambda x: {"y": fn(x)}, x=X)
    assert error.code == code
    assert error.loc.file.endswith("test_trace_errors.py")


# Entries -------------------------------------------------------------------------------------------------------------


def test_calling_an_entry():
    @gc.entry(x=X)
    def train(x):
        return {"y": x}

    with pytest.raises(GraphcError) as caught:
        train(np.zeros((4, 3)))
    check(
        caught.value,
        """
        GC0215: entry 'train' is compiled before it runs
          at FILE:LINE
            train(np.zeros((4, 3)))
          hint: program = gc.compile(train); program.train(...)
        """,
    )


def test_specs_match_the_arguments():
    with pytest.raises(GraphcError) as caught:

        @gc.entry(x=X)
        def train(x, y):
            return {"y": x}

    check(
        caught.value,
        """
        GC0214: the specs of entry 'train' do not match its arguments: no spec for y
          at FILE:LINE
            @gc.entry(x=X)
          hint: @gc.entry(x=gc.spec(...), y=gc.spec(...))
        """,
    )
    with pytest.raises(GraphcError, match="no argument named z"):
        gc.entry(x=X, z=X)(lambda x: {})
    with pytest.raises(GraphcError, match="GC0214: a shape is a tuple of ints from 0 on"):
        gc.spec((2, -1))
    with pytest.raises(GraphcError, match="GC0214: argument 'x' needs a"):
        gc.entry(x=3)(lambda x: {})


@pytest.mark.parametrize(("result", "what"), [(1, "a int"), ({"y": None}, "{'y': NoneType}"), ((1, 2), "a tuple")])
def test_entries_return_dicts(result, what):
    error = failure(lambda: result)
    assert error.code == "GC0204"
    assert error.message == f"entry '<lambda>' must return a dict of tensors by name, not {what}"


def test_computing_outside_of_an_entry():
    with pytest.raises(GraphcError) as caught:
        gc.relu(np.zeros(3))
    check(
        caught.value,
        """
        GC0210: tensors are computed inside entries only
          at FILE:LINE
            gc.relu(np.zeros(3))
          hint: put this in a function with @gc.entry(...) and run it with gc.compile(...)
        """,
    )


def test_tensors_stay_in_their_trace():
    kept = []
    first = gc.entry(x=X)(lambda x: kept.append(x * 2))
    second = gc.entry(x=X)(lambda x: {"y": x + kept[0]})
    with pytest.raises(GraphcError) as caught:
        trace_entries(first, second)
    check(
        caught.value,
        """
        GC0209: this tensor was made while tracing '<lambda>' and is used outside of that trace
          at FILE:LINE
            second = gc.entry(x=X)(lambda x: {"y": x + kept[0]})
          hint: keep tensors in local variables; what lives between runs is declared with gc.state(...)
        """,
    )


def test_tensors_of_a_checkpoint_stay_inside():
    def f(x):
        kept = []
        gc.checkpoint(lambda a: kept.append(a * 2) or a, x)
        return {"y": kept[0]}

    assert failure(f, x=X).code == "GC0209"


# State ---------------------------------------------------------------------------------------------------------------


def test_assigning_twice():
    step = gc.state(np.float32(0), name="step")

    def f():
        step.assign(step + 1)
        step.assign(step + 1)

    check(
        failure(f),
        """
        GC0206: state step is assigned twice in one entry
          at FILE:LINE
            step.assign(step + 1)
          hint: compute the final value first and assign it once
        """,
    )


def test_assigning_another_type():
    step = gc.state(np.float32(0), name="step")
    error = failure(lambda x: step.assign(x), x=X)
    assert (error.code, error.message) == ("GC0207", "state step is float32[] and cannot become float32[4,3]")
    error = failure(lambda x: step.assign(x.sum().astype("int32")), x=X)
    assert error.hint == "convert the value: gc.astype(x, 'float32')"


def test_state_without_a_name():
    w = nn.Parameter(np.zeros(3, np.float32))
    check(
        failure(lambda: {"y": w * 2}),
        """
        GC0213: this Parameter of shape (3,) has no name
          at FILE:LINE
            failure(lambda: {"y": w * 2}),
          hint: make it an attribute of an nn.Module, or pass name='...'
        """,
    )


def test_two_models_without_names_of_their_own():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    error = failure(lambda x: {"y": b(a(x))}, x=X)
    assert (error.code, error.message) == ("GC0211", "two pieces of state are both named 'weight'")
    b.named("second")
    traced = trace(lambda x: {"y": b(a(x))}, x=X)
    assert [s.name for s in traced.states] == ["weight", "bias", "second.weight", "second.bias"]


# Gradients -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        self.fc1 = nn.Linear(3, 3)
        self.fc3 = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.fc1(x)


def test_the_loss_is_a_scalar():
    net = Net()

    def f(x):
        return {"g": gc.grad(net(x), net.fc1.weight)}

    check(
        failure(f, x=X),
        """
        GC0301: the loss must be one float, and it is float32[4,3]
          at FILE:LINE
            return {"g": gc.grad(net(x), net.fc1.weight)}
          hint: reduce it to a scalar: loss.mean() or loss.sum()
        """,
    )


def test_a_parameter_without_a_gradient_path():
    net = Net()

    def f(x):
        loss = net(x).mean()
        grads = gc.grad(loss, net.parameters())
        return {"g": grads[0]}

    check(
        failure(f, x=X),
        """
        GC0302: parameter fc3.weight gets no gradient
          at FILE:LINE
            grads = gc.grad(loss, net.parameters())
          hint: the loss does not depend on it, or only through gc.stop_gradient: use it, leave it out of gc.grad,
                or pass gc.grad(..., allow_unused=True) to get zeros
        """,
    )


@pytest.mark.parametrize(
    "cut",
    [
        gc.stop_gradient,
        lambda h: gc.checkpoint(gc.stop_gradient, h),
        lambda h: h.astype("int32").astype("float32"),
        lambda h: (h > 0).astype("float32"),
    ],
)
def test_paths_end_where_gradients_do(cut):
    net = Net()
    error = failure(lambda x: {"g": gc.grad(net.fc1(cut(net.fc3(x))).mean(), net.parameters())[0]}, x=X)
    assert (error.code, error.message) == ("GC0302", "parameter fc3.weight gets no gradient")


def test_gradients_are_of_floats_and_not_in_checkpoints():
    error = failure(lambda i: {"g": gc.grad(i.astype("float32").sum(), i)}, i=gc.spec((2,), "int32"))
    assert (error.code, error.message) == ("GC0304", "no gradient with respect to the tensor, which is int32[2]")
    assert failure(lambda x: {"g": gc.checkpoint(lambda a: gc.grad(a.sum(), a), x)}, x=X).code == "GC0305"


def test_gradients_match_the_optimizer():
    net = Net()
    opt = optim.SGD(net.fc1.parameters(), lr=0.1)
    error = failure(lambda x: opt.update(gc.grad(net(x).mean(), [net.fc1.weight])), x=X)
    assert (error.code, error.message) == ("GC0306", "1 gradients do not match the 2 parameters of the optimizer")


def test_errors_in_a_trace_leave_no_trace_behind():
    net = Net()

    def f(x):
        net.eval()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        trace_entry(gc.entry(x=X)(f))
    assert net.fc1.training
    with pytest.raises(GraphcError, match="GC0210"):
        gc.zeros((2,))
