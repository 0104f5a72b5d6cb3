"""The table of error codes: what ``graphc explain`` prints, and what `graphc.errors.error` may be given.

A code is one kind of error, found under the same number for ever: codes are never reused. The first two digits are the
part that complains. Every entry says what the error means, shows it in an example and tells what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "Code"]


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of error: ``title`` in a few words, ``explain`` what it means and what to do, with an example."""

    code: str
    title: str
    explain: str


CODES: dict[str, Code] = {
    c.code: c
    for c in (
        # 00xx the compiler itself
        Code(
            "GC0001",
            "the graph broke a rule of the compiler",
            "A pass produced a graph that the verifier refuses. This is a defect in graphc, not in your model.\n"
            "Run with GRAPHC_DEBUG=2 to see which pass did it, and please report it with the printed lines.",
        ),
        Code(
            "GC0002",
            "a node has no value",
            "The interpreter met a node that a pass should have rewritten away. This is a defect in graphc, not in\n"
            "your model: please report it with the printed graph.",
        ),
        Code(
            "GC0003",
            "an input or a piece of state is missing or does not fit",
            "The graph reads an input or a piece of state that the caller did not pass, or passed with another dtype\n"
            "or shape. Give every input of the entry by name, and every state that the graph declares.",
        ),
        Code(
            "GC0008",
            "the memory plan is not sound",
            "A checker that shares no code with the planner found that a tensor is overwritten while it is needed.\n"
            "This is a defect in graphc, not in your model; please report it with the printed line.",
        ),
        Code(
            "GC0009",
            "a kernel did not compile",
            "The generated source of a kernel was refused by the compiler behind the target. This is a defect in\n"
            "graphc; please report it with the kernel's source file, which the message names.",
        ),
        Code(
            "GC0010",
            "no code generator for this processor",
            "graphc compiles for x86-64 with AVX2 and FMA (2013 and later), for AVX-512, and for 64-bit Arm.\n"
            "`graphc doctor` shows what it found on this machine.",
        ),
        # 01xx shapes and dtypes in the model
        Code(
            "GC0101",
            "shapes do not match",
            "Elementwise operations take operands of one shape; a dimension of 1 is repeated, others must be equal.\n"
            "Example: x[128, 10] + b[128] fails, because dimensions are matched from the right: 10 against 128.\n"
            "Write x + b[:, None], or look for a transposed or mis-sized operand.",
        ),
        Code(
            "GC0102",
            "dtypes do not match",
            "The operands of this operation must have one dtype. Example: gc.maximum(x, n) with x float32, n int32.\n"
            "Convert one of them: gc.astype(n, gc.float32).",
        ),
        Code(
            "GC0103",
            "the operation does not take this dtype",
            "Some operations exist for some dtypes only. Example: gc.exp(n) with n int32, or x & y on floats.\n"
            "Convert first: gc.exp(gc.astype(n, gc.float32)).",
        ),
        Code(
            "GC0104",
            "bad axis",
            "An axis counts dimensions from 0, each may be named once, and max and min need at least one element.\n"
            "Example: gc.sum(x, axis=2) with x of shape (3, 4), whose axes are 0 and 1.",
        ),
        Code(
            "GC0105",
            "reshape changes the number of elements",
            "A reshape keeps all elements in row-major order. Example: a (3, 4) tensor has 12 elements and can become\n"
            "(2, 6), not (2, 5). Use -1 for one dimension to have it computed.",
        ),
        Code(
            "GC0106",
            "cannot broadcast",
            "broadcast_to repeats dimensions of size 1 and adds dimensions on the left. Example: (3, 1) can become\n"
            "(2, 3, 4); (3,) cannot become (3, 4): write x[:, None] first.",
        ),
        Code(
            "GC0107",
            "the inner dimensions of a product differ",
            "A matrix product needs as many columns on the left as rows on the right, and equal batch dimensions.\n"
            "Example: x[128, 784] @ w[512, 784] fails; write x @ w.T.",
        ),
        Code(
            "GC0108",
            "slice or split out of bounds",
            "A slice lies within its dimension and steps forward; the sizes of a split add up to the dimension.\n"
            "Example: splitting 10 columns into (4, 4) leaves 2 over.",
        ),
        Code(
            "GC0109",
            "bad attribute",
            "A node carries a setting that its operation does not understand. From the Python functions this is a\n"
            "defect in graphc; from graph text written by hand, compare with what `graphc inspect --graph` prints.",
        ),
        Code(
            "GC0110",
            "the region does not fit its operands",
            "A region (a named piece of the graph, such as attention) was called with operands of other types than it\n"
            "was traced with, or its hand-written gradient has the wrong inputs or outputs. The message lists both\n"
            "sides.",
        ),
        Code(
            "GC0111",
            "wrong number of operands",
            "The operation takes a fixed number of operands. Example: add takes two.",
        ),
        # 02xx tracing
        Code(
            "GC0201",
            "control flow on a traced value",
            "A model is traced once; what a tensor holds is known only when the program runs. So `if x > 0:`,\n"
            "`while`, `and`, `or` and `not` cannot take tensors. Write gc.where(x > 0, a, b), or combine\n"
            "conditions with & and |.",
        ),
        Code(
            "GC0202",
            "a traced value has no elements yet",
            "float(x), int(x), x.item(), np.asarray(x), NumPy functions and iteration need numbers that exist\n"
            "only when the program runs. Use the gc function of the same name, or return the tensor from the\n"
            "entry and read it there.",
        ),
        Code(
            "GC0203",
            "a traced value is changed in place",
            "x[0] = 1 has no meaning in a graph: tensors are values. Write x = gc.where(mask, new, x) or\n"
            "gc.concat([...]). Rebinding is fine: x += 1. What lives between runs is declared with gc.state and\n"
            "written with .assign.",
        ),
        Code(
            "GC0204",
            "an entry does not return a dict of tensors",
            'Outputs have names: return {"loss": loss}. An entry that only updates state may return {}.',
        ),
        Code(
            "GC0205",
            "an index that is not known while tracing",
            "x[key] takes ints, slices with positive steps, None, ... and integer tensors. Masks would give a\n"
            "shape that depends on data: use gc.where(mask, x, 0).",
        ),
        Code(
            "GC0206",
            "a state is assigned twice",
            "An entry says once what a state becomes. Compute the final value in a local variable, then assign\nit.",
        ),
        Code(
            "GC0207",
            "a state cannot hold this value",
            "The shape and dtype of state are fixed by its initial value, which is a NumPy array or a number.",
        ),
        Code(
            "GC0208",
            "not a tensor, or no such element type",
            "Functions take tensors, NumPy arrays and Python numbers of the element types float64, float32,\n"
            "int64, int32, int16, int8, uint32, uint8 and bool.",
        ),
        Code(
            "GC0209",
            "a tensor from another trace",
            "A tensor belongs to the entry (or checkpointed function) in which it was made. Keep tensors in local\n"
            "variables, not in globals or on modules; what lives between runs is declared with gc.state.",
        ),
        Code(
            "GC0210",
            "tensor computation outside of an entry",
            "gc functions build a graph. Put the code in a function marked with @gc.entry and compile it with\n"
            "gc.compile.",
        ),
        Code(
            "GC0211",
            "two pieces of state have one name",
            'State is shared by name. Name one of the modules: net = Net().named("actor"), which prefixes its\n'
            "names; keep modules of a list in nn.ModuleList; declare gc.state outside of entries, once.",
        ),
        Code(
            "GC0212",
            "a large constant",
            "A NumPy array in a model becomes a constant of the program. From 64 KiB on, make it state or an\ninput.",
        ),
        Code(
            "GC0213",
            "state without a name",
            'A parameter gets its name from the module that it is an attribute of; others need name="...".',
        ),
        Code(
            "GC0214",
            "specs and arguments of an entry do not match",
            'Each argument of the function has one spec: @gc.entry(x=gc.spec((128, 784), "float32")) for def\n'
            "train(x).",
        ),
        Code(
            "GC0215",
            "an entry is called directly",
            "Entries are compiled first: program = gc.compile(train), then program.train(x=...). Inside another\n"
            "entry, a call is inlined.",
        ),
        Code(
            "GC0216",
            "a module is not set up like this",
            "Modules hold parameters, state and other modules as attributes. To change a parameter's value before\n"
            "compiling, use load_state_dict; inside an entry, use .assign.",
        ),
        Code(
            "GC0217",
            "arguments of a layer or function do not fit together",
            "A size, probability or mode that the layer or function does not accept; the message names it.",
        ),
        # 03xx gradients
        Code(
            "GC0301",
            "the loss is not a scalar",
            "gc.grad differentiates one number. Reduce the loss to a scalar of a float dtype first:\n"
            "gc.grad(gc.mean(errors), params), not gc.grad(errors, params).",
        ),
        Code(
            "GC0302",
            "no gradient reaches a variable",
            "The loss does not depend on a tensor that gc.grad was asked for, or only through integers or\n"
            "gc.stop_gradient. A layer that is built but not called is the usual cause. Use the tensor in the model,\n"
            "leave it out of the call, or say allow_unused=True to get zeros for it.",
        ),
        Code(
            "GC0303",
            "an op between variable and loss has no gradient",
            "An op may say that it has no derivative. Wrap its operand in gc.stop_gradient where no gradient should\n"
            "flow.",
        ),
        Code(
            "GC0304",
            "gradient with respect to a tensor that is not a float",
            "Only tensors of a float dtype have gradients. Leave integers and booleans out of gc.grad.",
        ),
        Code(
            "GC0305",
            "a gradient inside a checkpoint",
            "gc.grad must be taken outside of the checkpointed function.",
        ),
        Code(
            "GC0306",
            "gradients do not match the optimizer's parameters",
            "opt.update takes one gradient per parameter, in the order in which the optimizer got the parameters:\n"
            "opt.update(gc.grad(loss, net.parameters())).",
        ),
        Code(
            "GC0307",
            "training leaves a trainable parameter out",
            "An entry updates some parameters, and its loss depends on another one for which no entry of the\n"
            "program asks a gradient. Such a part never learns, and nobody notices. Example:\n"
            "gc.grad(loss, net.head.parameters()) in a model with a body. Ask for net.parameters(), or say what is\n"
            "frozen: for p in net.body.parameters(): p.trainable = False.",
        ),
        # 04xx run time: arguments and values
        Code(
            "GC0401",
            "an argument is missing or unexpected",
            "An entry is called with exactly the arguments of its @gc.entry line, by name:\n"
            "\n"
            "    program.train(x=x, y=y)",
        ),
        Code(
            "GC0402",
            "an argument has the wrong dtype",
            "Arguments are not converted silently, since that hides mistakes and costs time. Convert the array:\n"
            "\n"
            "    program.infer(x=x.astype('float32'))\n"
            "\n"
            "Python numbers and lists of them are taken when they fit the dtype without loss.",
        ),
        Code(
            "GC0403",
            "an argument has the wrong shape",
            "A program is compiled for fixed shapes. Give an array of the declared shape, or compile another entry.",
        ),
        Code(
            "GC0420",
            "an index is out of range",
            "gc.take, embedding lookups and scatter_add need indices from 0 to size - 1; negative ones do not count\n"
            "from the end. Example: a token id of 50257 in a vocabulary of 50257. Check the data and the vocabulary's\n"
            "size.",
        ),
        # 05xx artifacts and graph text
        Code(
            "GC0501",
            "not an artifact",
            "The file is not a .gcx file at all, or is cut off at the end.",
        ),
        Code(
            "GC0502",
            "a damaged artifact",
            "Names, sizes, offsets or types in the file contradict each other. Nothing of it was run.",
        ),
        Code(
            "GC0503",
            "another format version",
            "The file was written by a graphc whose artifact format this one does not read.",
        ),
        Code(
            "GC0504",
            "a digest does not match",
            "A member of the artifact is not what was written. Nothing of it was run.",
        ),
        Code(
            "GC0505",
            "the artifact was built for another machine",
            "Native code in the artifact needs CPU features that this machine does not have, or another system. Where\n"
            "the compiler is installed, graphc.load rebuilds the program from its graph and says so.",
        ),
        Code(
            "GC0506",
            "native code of unknown origin",
            "The artifact was not built by this user on this machine, so its native code is not run. Where the\n"
            "compiler is installed, graphc.load rebuilds it from the graph; otherwise, if you trust where the file\n"
            "comes from, say graphc.load(path, trust=True).",
        ),
        Code(
            "GC0507",
            "an artifact cannot be read or written",
            "The operating system refused; the message says why.",
        ),
        Code(
            "GC0550",
            "the graph text cannot be read",
            "The text form of a graph has a defect in the line that the message names: a missing mark, a value used\n"
            "before its definition, a malformed constant.",
        ),
        # 06xx command line, configuration and data
        Code(
            "GC0601",
            "unknown configuration key",
            "--set KEY=VALUE overrides a field of the model file's dataclass Config, which has no field of that name.\n"
            "The message lists the names that come close; `graphc inspect FILE.py` lists them all.",
        ),
        Code(
            "GC0602",
            "a configuration value does not fit",
            "--set KEY=VALUE reads VALUE by the type of the field: 12 for int, 0.1 or 1e-3 for float, true or\n"
            "false for bool, anything for str. The same code says that Config itself refused the combination of\n"
            "values, or that an environment variable of graphc has a value out of range.",
        ),
        Code(
            "GC0603",
            "the data file cannot be read",
            "The path that --data (or --input, or --state) names does not exist or may not be read. Relative paths\n"
            "start at the folder in which graphc runs.",
        ),
        Code(
            "GC0604",
            "the data file does not hold what was expected",
            "A text must be UTF-8 and long enough for its held-out tenth to fill a window; an image file must be a\n"
            "whole IDX file; an --input must be a .npy file. The message says what was found.",
        ),
        Code(
            "GC0605",
            "the model file cannot be used",
            "A model file is a Python file with @gc.entry functions at module level, or with a dataclass Config and a\n"
            "function entries(config) that returns such functions. `graphc train` also needs a generator\n"
            "batches(config, split) and an entry `train` that returns a scalar `loss`.",
        ),
        Code(
            "GC0606",
            "the run cannot be resumed",
            "A checkpoint resumes the run that wrote it: the same model file, configuration and seed. Start graphc\n"
            "train with the settings that the message shows, or without --resume for a new run.",
        ),
        Code(
            "GC0607",
            "no such pass, kernel, entry or target",
            "The name after --dump-after, --kernel, --entry or --target does not occur. The message lists some.",
        ),
        Code(
            "GC0608",
            "the loss is not finite",
            "The training loss became NaN or infinite; no checkpoint was written. A lower learning rate, a longer\n"
            "warm-up or gradient clipping are the usual cures.",
        ),
        Code(
            "GC0609",
            "unknown error code",
            "`graphc explain CODE` takes a code like GC0601, as errors print it; without a code it lists them all.",
        ),
        Code(
            "GC0610",
            "a file cannot be written",
            "The path given for a result lies in a folder that does not exist or may not be written.",
        ),
        Code(
            "GC0611",
            "the compiled program is wrong",
            "`graphc verify` found a result that differs from the interpreter's by more than rounding explains.\n"
            "This is a defect in graphc; please report it with the model file.",
        ),
        # 07xx memory
        Code(
            "GC0701",
            "the program needs more memory than its budget",
            "The plan's peak is above --memory-budget. The table lists the largest tensors, their lifetimes (in\n"
            "launches) and lines. Make the batch smaller, or raise the budget.",
        ),
        # 08xx state and checkpoints
        Code(
            "GC0801",
            "the state has other names",
            "A checkpoint or mapping lacks state of the program or has names that it does not know. With\n"
            "strict=False, both are skipped.",
        ),
        Code(
            "GC0802",
            "a piece of state has another shape or dtype",
            "The checkpoint was saved by another model or another configuration. Nothing was overwritten.",
        ),
        Code(
            "GC0804",
            "a damaged safetensors file",
            "Lengths, names or offsets in the file contradict each other. Nothing was loaded.",
        ),
        Code(
            "GC0805",
            "a state file cannot be read or written",
            "The operating system refused; the message says why.",
        ),
    )
}
