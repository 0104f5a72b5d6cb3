// c[m, n] = a[m, k] b[k, n] by 16 x 16 tiles of both factors in dynamic shared memory.

#include "graphc.cuh"

extern "C" __global__ void matmul(const float *a, const float *b, float *c, int m, int n, int k) {
    float(*tile_a)[16] = (float(*)[16])shared, (*tile_b)[16] = tile_a + 16;
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int first = 0; first < k; first += 16) {
        int i = first + threadIdx.x, j = first + threadIdx.y;
        tile_a[threadIdx.y][threadIdx.x] = row < m && i < k ? a[row * k + i] : 0;
        tile_b[threadIdx.y][threadIdx.x] = j < k && column < n ? b[j * n + column] : 0;
        __syncthreads();
        for (int l = 0; l < 16; l++) sum = fmaf(tile_a[threadIdx.y][l], tile_b[l][threadIdx.x], sum);
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}
