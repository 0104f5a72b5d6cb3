"""The CUDA target: kernels of the loop IR as CUDA C++, and cubins of them by NVRTC."""
