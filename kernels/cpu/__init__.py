"""The CPU target: Numba source over LLVM vectors."""
