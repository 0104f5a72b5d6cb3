// Each block sums every (grid)th element: a tree in shared memory, the last steps within a warp.

#include "graphc.cuh"

extern "C" __global__ void reduction(const float *x, float *sums, int n) {
    __shared__ float part[128];
    int t = threadIdx.x;
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    part[t] = sum;
    __syncthreads();
    for (int half = 64; half >= 32; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t < 32) {
        for (int half = 16; half > 0; half /= 2) {
            if (t < half) part[t] += part[t + half];
            __syncwarp();
        }
        if (t == 0) sums[blockIdx.x] = part[0];
    }
}
