// One row per block: warp shuffles, then one value of each warp in shared memory.

#include "graphc.cuh"

__device__ float warp_max(float v) {
    for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

__device__ float warp_sum(float v) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

template <bool MAX>
__device__ float block_reduce(float v, float *of_warps) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = MAX ? warp_max(v) : warp_sum(v);
    if (lane == 0) of_warps[warp] = v;
    __syncthreads();
    v = lane < warps ? of_warps[lane] : MAX ? -INFINITY : 0;
    v = MAX ? warp_max(v) : warp_sum(v);
    __syncthreads();
    return v;
}

extern "C" __global__ void __launch_bounds__(128) softmax(const float *x, float *y, int n) {
    __shared__ float of_warps[32];
    x += (long long)blockIdx.x * n;
    y += (long long)blockIdx.x * n;
    float high = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) high = fmaxf(high, x[i]);
    high = block_reduce<true>(high, of_warps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += expf(x[i] - high);
    sum = block_reduce<false>(sum, of_warps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = expf(x[i] - high) / sum;
}
