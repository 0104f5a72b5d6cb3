"""The CPU target: Numba source over LLVM vectors, and the front end that compiles it."""
