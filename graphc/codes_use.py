"""The codes of what is wrong around a model: files, commands, data, memory and state (05xx to 08xx)."""

from __future__ import annotations

from graphc.codes_base import Code

__all__ = ["USE"]

USE: dict[str, Code] = {
    # 05xx artifacts and graph text
    "GC0501": Code(
        "not an artifact",
        "The file is not a .gcx file at all, or its end is missing.",
        "graphc run net.py train, or a download that stopped.",
        "Copy it again, or write it anew with `graphc compile FILE.py -o FILE.gcx`.",
    ),
    "GC0502": Code(
        "a damaged artifact",
        "Names, sizes, offsets or types in the file contradict each other. Nothing of it was run.",
        "an argument of a kernel that lies outside of the arena.",
        "Get the file again from its source, or compile the model again.",
    ),
    "GC0503": Code(
        "another format version",
        "The file was written by a graphc whose artifact format this one does not read.",
        "a file of graphc 3 in graphc 1.",
        "Load it with the graphc that wrote it, or compile the model again.",
    ),
    "GC0504": Code(
        "a digest does not match",
        "A member of the artifact is not what was written. Nothing of it was run.",
        "a byte of the weights that changed on a bad disk.",
        "Get the file again from its source, or compile the model again.",
    ),
    "GC0505": Code(
        "the artifact was built for another machine",
        "Native code in the artifact needs CPU features or a system that this machine does not have.",
        "a file built with AVX-512 on a processor without, or --cpu-baseline x86-64-v4 there.",
        "Where the compiler is installed, graphc.load rebuilds it from its graph and says so; or compile it here.",
    ),
    "GC0506": Code(
        "native code of unknown origin",
        "The artifact was not built by this user on this machine, so its native code is not run.",
        "a file from a download.",
        "Where the compiler is installed, graphc.load rebuilds it from its graph; if you trust its source, "
        "graphc.load(path, trust=True).",
    ),
    "GC0507": Code(
        "an artifact cannot be read or written",
        "The operating system refused; the message says why.",
        "graphc run nothing.gcx train",
        "Check the path, from the folder in which graphc runs, and its permissions.",
    ),
    "GC0508": Code(
        "no GPU that can be used",
        "The program was compiled for an NVIDIA GPU, and runs through CuPy: either that is not installed, or it finds "
        "no driver or no GPU. The message says which.",
        "an artifact of --target cuda on a laptop.",
        "`graphc doctor` shows what is there. pip install 'graphc[cuda]' installs CuPy. Compile with --target cpu "
        "to run on the processor.",
    ),
    "GC0509": Code(
        "cuBLASLt or cuDNN is missing, or refuses",
        "The program was compiled with calls of NVIDIA's libraries, cuBLASLt for products and cuDNN for convolutions: "
        "either the one is not installed, or it has nothing such for this GPU. The message says which.",
        "an artifact of --libraries on, with products in float64, on a machine without the library.",
        "pip install nvidia-cublas nvidia-cudnn-cu13; or compile with --libraries off, for graphc's own kernels.",
    ),
    "GC0550": Code(
        "the graph text cannot be read",
        "The text of a graph has a defect in the line that the message names.",
        "%2 = add(%0, %1) where %1 is defined further down.",
        "Compare with what `graphc inspect --graph` prints.",
    ),
    # 06xx command line, configuration and data
    "GC0601": Code(
        "unknown configuration key",
        "--set KEY=VALUE overrides a field of the model file's dataclass Config, which has none of that name.",
        "--set n_layers=4 where Config has n_layer.",
        "`graphc inspect FILE.py` lists the keys.",
    ),
    "GC0602": Code(
        "a configuration value does not fit",
        "A value is read by the type of its field, Config may refuse a combination, and environment variables have "
        "ranges.",
        "--set n_layer=four, or GRAPHC_THREADS=0.",
        "Give 12 for int, 0.1 or 3e-4 for float, true or false for bool, anything for str.",
    ),
    "GC0603": Code(
        "a data file cannot be read",
        "The path that --data or --input names does not exist or may not be read.",
        "--data shakespear.txt",
        "Check the path: it starts at the folder in which graphc runs.",
    ),
    "GC0604": Code(
        "a data file does not hold what was expected",
        "A text must be UTF-8 and long enough to hold a part out; an image file a whole IDX file; an --input a .npy "
        "file.",
        "--data photo.jpg for a text model.",
        "The message says what was found: convert the file, or get it again.",
    ),
    "GC0605": Code(
        "the model file cannot be used",
        "A model file has @gc.entry functions, or entries(config) that returns some; `graphc train` also needs "
        "batches(config, split) and an entry `train` that returns a scalar `loss`.",
        "graphc train on a file that only has an entry infer.",
        "Add what the message names; models/mlp.py is a short complete file.",
    ),
    "GC0606": Code(
        "the run cannot be resumed",
        "A checkpoint resumes the run that wrote it: the same model file and configuration.",
        "--resume with another --set n_layer.",
        "Give the settings that the message shows, or leave out --resume for a new run.",
    ),
    "GC0607": Code(
        "no such pass, kernel, entry, target, CPU baseline or precision",
        "The name after --dump-after, --kernel, --entry, target=, cpu_baseline= or precision= does not occur.",
        "--dump-after differentate",
        "The message lists names that come close; this version has the target cpu.",
    ),
    "GC0608": Code(
        "the loss is not finite",
        "The training loss became NaN or infinite; no checkpoint was written after that.",
        "a learning rate of 10.",
        "Lower the learning rate, warm up longer, or clip: optim.clip_by_global_norm(grads, 1.0).",
    ),
    "GC0609": Code(
        "unknown error code",
        "`graphc explain CODE` takes a code as errors print it.",
        "graphc explain GC9999",
        "`graphc explain` without a code lists them all.",
    ),
    "GC0610": Code(
        "a file cannot be written",
        "The path for a result or for the cache lies in a folder that does not exist or may not be written.",
        "--report no/where.html",
        "Make the folder, or give another path; GRAPHC_CACHE names the folder of the cache.",
    ),
    "GC0611": Code(
        "the compiled program is wrong",
        "`graphc verify` found a result that differs from the interpreter's by more than rounding explains.",
        "a loss of 2.31 where the interpreter has 2.35.",
        "This is a defect in graphc, not in your model: please report it with the model file.",
    ),
    "GC0612": Code(
        "a prompt cannot be turned into tokens",
        "`graphc generate` needs the tokenizer that the model was trained with: the artifact carries it, or "
        "--tokenizer names it. The prompt must consist of its tokens and fit into the model's context.",
        "--prompt “é” for a model that was trained on ASCII characters.",
        "Give --tokenizer PATH, or another prompt; graphc[text] has the library that reads tokenizer.json.",
    ),
    "GC0613": Code(
        "the model file raised an exception",
        "The file, or a module that it imports, raised an exception while it was imported or traced or made a batch.",
        "a name that is spelled differently where it is used.",
        "The line is the last one of yours that led to it; GRAPHC_DEBUG=1 shows the whole traceback.",
    ),
    # 07xx memory
    "GC0701": Code(
        "the program needs more memory than its budget",
        "The plan's peak is above --memory-budget (or memory_budget=), with all computed again that helps. The table "
        "lists the largest tensors, their lifetimes in launches, and their lines.",
        "--memory-budget 1GiB for a batch of 512.",
        "Make the batch smaller, or raise the budget to what the message says.",
    ),
    "GC0702": Code(
        "the GPU has too little free memory",
        "State, constants, arena and workspace of a program are reserved before its first step, and the GPU does not "
        "have so much left.",
        "a second program, or another process, on the same GPU.",
        "Free it there, make the batch smaller, or compile with --memory-budget.",
    ),
    # 08xx state and checkpoints
    "GC0801": Code(
        "the state has other names",
        "Weights or a checkpoint lack state that is needed, or have names that the program does not know. Nothing "
        "was overwritten.",
        "weights of a model with a bias, for a model without.",
        "Rename or complete them; strict=False takes the names that match.",
    ),
    "GC0802": Code(
        "a piece of state has another shape or dtype",
        "The values were saved by another model or configuration. Nothing was overwritten.",
        "a weight float32[10,512] for one of float32[10,256].",
        'Use the configuration that wrote them, or convert: array.astype("float32").',
    ),
    "GC0804": Code(
        "a damaged safetensors file",
        "Lengths, names or offsets in the file contradict each other. Nothing was loaded.",
        "a checkpoint whose copy stopped half way.",
        "Get the file again, or save the state again.",
    ),
    "GC0805": Code(
        "a state file cannot be read or written",
        "The operating system refused; the message says why.",
        "--state ckpt.safetensors in another folder.",
        "Check the path, from the folder in which graphc runs, and its permissions.",
    ),
}
