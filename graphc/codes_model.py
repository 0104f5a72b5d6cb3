"""The codes of what is wrong in a model, found while it is traced, compiled or run (00xx to 04xx)."""

from __future__ import annotations

from graphc.codes_base import Code

__all__ = ["MODEL"]

MODEL: dict[str, Code] = {
    # 00xx the compiler itself
    "GC0001": Code(
        "the graph broke a rule of the compiler",
        "A pass produced a graph that the verifier refuses.",
        "a sum whose type is not that of its operands.",
        "This is a defect in graphc, not in your model: please report it with the printed lines. GRAPHC_DEBUG=2 says "
        "which pass did it.",
    ),
    "GC0002": Code(
        "a node has no value",
        "The interpreter met a node that a pass should have written out.",
        "a `grad` after the pass differentiate.",
        "This is a defect in graphc, not in your model: please report it with the printed graph.",
    ),
    "GC0003": Code(
        "an input or a piece of state is missing or does not fit",
        "The interpreter needs every input and every state of the graph, in its dtype and shape.",
        "interpret(graph, {}) for a graph with an input x.",
        "Give the arrays that the message names, converted with astype or reshape.",
    ),
    "GC0008": Code(
        "the memory plan is not sound",
        "A checker that shares no code with the planner found a tensor that is overwritten while it is needed.",
        "two tensors at one offset of the arena, alive at the same time.",
        "This is a defect in graphc, not in your model: please report it with the printed line.",
    ),
    "GC0009": Code(
        "a kernel did not compile",
        "The compiler behind the target refused the generated source of a kernel.",
        "an instruction that this version of LLVM does not know.",
        "This is a defect in graphc, not in your model: please report it with the printed lines and those of `graphc "
        "doctor`.",
    ),
    "GC0010": Code(
        "no code generator for this processor",
        "This graphc compiles for x86-64 with AVX2 and FMA (2013 and later), for AVX-512, and for 64-bit Arm.",
        "an x86-64 processor of 2011.",
        "`graphc doctor` shows what it found here; compile on another machine.",
    ),
    "GC0011": Code(
        "the compiler of a target is not installed",
        "Code for NVIDIA GPUs is compiled by NVRTC, a library of NVIDIA's that needs neither a GPU nor a driver.",
        'gc.compile(train, target="cuda") where only graphc itself is installed.',
        "pip install nvidia-cuda-nvrtc (150 MB), or graphc[cuda] with what runs programs on a GPU.",
    ),
    # 01xx shapes and dtypes in the model
    "GC0101": Code(
        "shapes do not match",
        "Elementwise operations repeat dimensions of 1; all others must be equal, counted from the last.",
        "x + b with x (128, 10) and b (128,) compares 10 with 128.",
        "Write x + b[:, None], or look for a transposed or mis-sized operand.",
    ),
    "GC0102": Code(
        "dtypes do not match",
        "A node has operands of different dtypes. The Python functions convert operands; graph text does not.",
        "add(%x, %n) with x float32 and n int32 in a graph written by hand.",
        "Convert one of them: gc.astype(n, gc.float32), in text astype{dtype=float32}(%n).",
    ),
    "GC0103": Code(
        "the operation does not take this dtype",
        "Some operations exist for some dtypes only.",
        "x & y on floats, or an embedding indexed by floats.",
        'Convert first: gc.astype(x, "int32"); or declare the input as what it is: gc.spec(shape, "int32").',
    ),
    "GC0104": Code(
        "bad axis",
        "Axes are counted from 0, or from -1 backwards; each may be named once; max and min need an element.",
        "x.sum(axis=2) with x of shape (3, 4), whose axes are 0 and 1.",
        "Name an axis that exists; x.shape shows them.",
    ),
    "GC0105": Code(
        "reshape changes the number of elements",
        "A reshape keeps all elements, in row-major order.",
        "x.reshape(5, 2) with x of shape (3, 4), which has 12 elements.",
        "Write x.reshape(6, 2), or -1 for the one dimension to be computed: x.reshape(2, -1).",
    ),
    "GC0106": Code(
        "cannot broadcast",
        "broadcast_to repeats dimensions of size 1 and adds dimensions on the left.",
        "(3, 1) can become (2, 3, 4); (3,) cannot become (3, 4).",
        "Add the dimension of 1 where it is wanted: gc.broadcast_to(x[:, None], (3, 4)).",
    ),
    "GC0107": Code(
        "the inner dimensions of a product differ",
        "A matrix product needs as many columns on the left as rows on the right, and batches that broadcast.",
        "x @ w with x (128, 784) and w (512, 784).",
        "Write x @ w.T; give a layer the width that arrives: nn.Linear(x.shape[-1], 512).",
    ),
    "GC0108": Code(
        "an index, slice or split out of bounds",
        "Indices lie within their dimension; the sizes of a split add up to it.",
        "x[4] with x of shape (4, 3), or gc.split(x, [4, 4]) of 10 columns.",
        "Use an index that exists, or sizes that fill the dimension: gc.split(x, [4, 4, 2]).",
    ),
    "GC0109": Code(
        "bad attribute",
        "A node carries a setting that its operation does not understand.",
        "reshape{shape=(2, -3)} in a graph written by hand.",
        "In graph text, compare with what `graphc inspect --graph` prints. From Python it is a defect: report it.",
    ),
    "GC0110": Code(
        "the region does not fit its operands",
        "A region (a named piece of the graph, such as attention) was called with operands of other types than it "
        "was traced with, or its hand-written gradient has other inputs or outputs.",
        "a body of two inputs, called with three operands.",
        "The message lists both sides: make them agree.",
    ),
    "GC0111": Code(
        "wrong number of operands",
        "The operation takes a fixed number of operands, or at least one.",
        "gc.concat([]).",
        "Give the operands that the message asks for: gc.concat([a, b]).",
    ),
    "GC0113": Code(
        "a window does not fit",
        "Convolution and pooling slide a window over the input, which must be at least as long as the window after "
        "padding; channels and groups must divide as the weight says.",
        "nn.MaxPool2d(3) on an image of 2 x 2, or nn.Conv2d(16, 32, 3) on 3 channels.",
        "Pad the input, make the window smaller, or give the layer the channels that arrive.",
    ),
    "GC0114": Code(
        "a carry changes its form, shape or dtype",
        "What a loop hands from one iteration to the next has one type, that of its first value.",
        "gc.scan(lambda c, x: (gc.concat([c, x]), None), init, xs): the carry grows.",
        "Start with the type that the body returns: 0.0 for a float, gc.zeros(shape) for a sum of rows. What grows is "
        "returned as y, which is stacked.",
    ),
    "GC0115": Code(
        "the branches of a condition return different things",
        "Both functions of gc.cond return tensors of the same shapes and dtypes, in the same form.",
        "gc.cond(p, lambda x: x, lambda x: x.sum(), x)",
        "Give the smaller one the other's shape: gc.broadcast_to(x.sum(), x.shape).",
    ),
    # 02xx tracing
    "GC0201": Code(
        "control flow on a traced value",
        "A model is traced once; what a tensor holds is known only when the program runs, so Python cannot decide by "
        "it.",
        "if x.sum() > 0: x = -x",
        "Write x = gc.where(x.sum() > 0, -x, x); gc.cond, gc.scan and gc.while_loop run inside of the program.",
    ),
    "GC0202": Code(
        "a traced value has no elements yet",
        "float(x), x.item(), np.asarray(x), NumPy functions and iteration need numbers that exist only when the "
        "program runs.",
        "scale = x.max().item()",
        'Leave it a tensor, scale = x.max(), use gc functions, or return it from the entry: {"scale": scale}.',
    ),
    "GC0203": Code(
        "a traced value is changed in place",
        "Tensors are values: nothing changes them. Rebinding a name is fine: x += 1.",
        "x[0] = 1",
        "Write gc.where(mask, 1, x) or gc.concat([one, x[1:]]). What lives between runs is gc.state, with .assign.",
    ),
    "GC0204": Code(
        "an entry does not return a dict of tensors",
        "The outputs of an entry have names. An entry that only updates state may return {}.",
        "return loss",
        'Give it a name: return {"loss": loss}.',
    ),
    "GC0205": Code(
        "an index that is not known while tracing",
        "x[key] takes ints, slices with positive steps, None, ... and integer tensors: the shape must be known.",
        "x[x > 0], whose shape depends on the data.",
        "Write gc.where(x > 0, x, 0); gc.flip(x, axis) for a step of -1.",
    ),
    "GC0206": Code(
        "a state is assigned twice",
        "An entry says once what a state becomes.",
        "step.assign(step + 1) in two places of one entry.",
        "Compute the final value in a local variable, then assign it.",
    ),
    "GC0207": Code(
        "a state cannot hold this value",
        "The shape and dtype of state are those of its initial value, a NumPy array or a number.",
        'gc.state(np.int32(0), name="n").assign(x) with x float32.',
        'Convert the value: n.assign(gc.astype(x, "int32")), or declare the state as what it will hold.',
    ),
    "GC0208": Code(
        "not a tensor, or no such element type",
        "Functions take tensors, arrays and numbers of float64, float32, float16, bfloat16, int64, int32, int16, "
        "int8, uint32, uint8 and bool.",
        'gc.exp("x"), or an array of complex64.',
        "Convert it while it is an array: np.float32(x).",
    ),
    "GC0209": Code(
        "a tensor from another trace",
        "A tensor belongs to the entry (or checkpointed function) in which it was made.",
        "self.h = h in one entry, self.h * 2 in another.",
        "Keep tensors in local variables; what lives between runs is declared with gc.state.",
    ),
    "GC0210": Code(
        "tensor computation outside of an entry",
        "Functions of gc build a graph, and outside of an entry there is none.",
        "gc.relu(np.zeros(3)) at the top of a file.",
        "Put it in a function with @gc.entry and compile that; for plain numbers, use NumPy.",
    ),
    "GC0211": Code(
        "two pieces of state have one name",
        "The entries of a program share state by name, so that a name means one thing.",
        "nn.Linear(3, 3) twice, both the root of their own model: two states named weight.",
        'Name one: actor = Net().named("actor"). Modules of a list belong in nn.ModuleList.',
    ),
    "GC0212": Code(
        "a large constant",
        "A NumPy array in a model becomes a constant of the program, up to 64 KiB.",
        "x @ np.zeros((512, 512), np.float32)",
        'Declare it once: gc.state(array, name="table"), nn.Parameter(array), or an input of the entry.',
    ),
    "GC0213": Code(
        "state without a name",
        "A parameter gets its name from the module that it is an attribute of.",
        "w = nn.Parameter(array) in a function.",
        'Write self.w = nn.Parameter(array) in a module, or nn.Parameter(array, name="w").',
    ),
    "GC0214": Code(
        "specs and arguments of an entry do not match",
        "Each argument of an entry has one spec: shape and dtype.",
        "@gc.entry(x=gc.spec((128, 784))) over def train(x, y).",
        'Write @gc.entry(x=gc.spec((128, 784)), y=gc.spec((128,), "int32")).',
    ),
    "GC0215": Code(
        "an entry is called directly",
        "Entries are compiled before they run; only inside another entry a call is inlined.",
        "train(x=x)",
        "Write program = gc.compile(train), then program.train(x=x).",
    ),
    "GC0216": Code(
        "a module is not set up like this",
        "Modules hold parameters, state and other modules as attributes, and these stay what they are.",
        "self.layers = [nn.Linear(3, 3)], or net.weight = array.",
        "Write self.layers = nn.ModuleList([...]); net.load_state_dict({...}) sets values.",
    ),
    "GC0217": Code(
        "arguments of a layer or function do not fit together",
        "A size, probability or mode that the layer or function does not accept; the message names it.",
        "gc.dropout(x, 1.5), or 5 heads of attention over 64 dimensions.",
        "Choose a value of the range that the message states.",
    ),
    # 03xx gradients
    "GC0301": Code(
        "the loss is not a scalar",
        "gc.grad differentiates one number of a float dtype.",
        "gc.grad((net(x) - y) ** 2, params)",
        "Reduce it first: gc.grad(gc.mean((net(x) - y) ** 2), params).",
    ),
    "GC0302": Code(
        "no gradient reaches a variable",
        "The loss does not depend on a tensor that gc.grad was asked for, or only through integers or "
        "gc.stop_gradient.",
        "a layer that __init__ makes and forward forgets.",
        "Use it, leave it out of gc.grad, or pass allow_unused=True to get zeros for it.",
    ),
    "GC0303": Code(
        "an op between variable and loss has no gradient",
        "An op may say that it has no derivative.",
        "the gradient of a model with random_bits in its path.",
        "Wrap its operand in gc.stop_gradient where no gradient should flow.",
    ),
    "GC0304": Code(
        "gradient with respect to a tensor that is not a float",
        "Only tensors of a float dtype have gradients.",
        "gc.grad(loss, tokens) with tokens int32.",
        "Leave integers out of gc.grad; make parameters of float arrays.",
    ),
    "GC0305": Code(
        "a gradient inside a checkpoint",
        "gc.grad is not possible in the function that is given to gc.checkpoint.",
        "gc.checkpoint(lambda x: gc.grad(f(x), x), x)",
        "Turn it round: gc.grad(gc.checkpoint(f, x), x).",
    ),
    "GC0306": Code(
        "gradients do not match the optimizer's parameters",
        "opt.update takes one gradient for each parameter of the optimizer.",
        "opt.update(gc.grad(loss, [net.bias])) with opt made of net.parameters().",
        "Give both the same: opt.update(gc.grad(loss, net.parameters())).",
    ),
    "GC0307": Code(
        "training leaves a trainable parameter out",
        "An entry updates some parameters, and its loss depends on another for which no entry asks a gradient.",
        "gc.grad(loss, net.head.parameters()) in a model with a body.",
        "Ask for net.parameters(), or freeze the rest before: net.body.requires_grad_(False).",
    ),
    # 04xx run time: arguments and values
    "GC0401": Code(
        "an argument is missing or unexpected",
        "An entry is called with exactly the arguments of its @gc.entry line, by name.",
        "program.train(x, y)",
        "Write program.train(x=x, y=y).",
    ),
    "GC0402": Code(
        "an argument has the wrong dtype",
        "Arrays are not converted silently: that hides mistakes and costs time. Python numbers and lists are, where "
        "they fit.",
        "a float64 array, as NumPy makes them, for a float32 argument.",
        'Convert the array: program.infer(x=x.astype("float32")).',
    ),
    "GC0403": Code(
        "an argument has the wrong shape",
        "A program is compiled for the shapes of its specs, and takes no others.",
        "the last batch of an epoch, with 17 rows for a spec of (128, 784).",
        "Leave it out, pad it, or compile another entry for its shape.",
    ),
    "GC0404": Code(
        "an argument is on another GPU",
        "A program runs on the GPU that was CuPy's current one at its first call, and takes arrays of that alone.",
        "an array that was made under cupy.cuda.Device(1), for a program on GPU 0.",
        "Copy it there, or make the first call under `with cupy.cuda.Device(1):`.",
    ),
    "GC0420": Code(
        "an index is out of range",
        "gc.take, embeddings, scatter_add and the labels of cross_entropy need 0 to size - 1; negative ones do not "
        "count from the end.",
        "a token 50257 in a vocabulary of 50257.",
        "Check the data and the size of the vocabulary or of the last layer.",
    ),
}
