// c[16 m, 8 n] = a[16 m, k] b[8 n, k]^T on tensor cores, a warp per 16 x 8 tile. Factors arrive asynchronously, the
// next ones while the present ones are used.

#include "graphc.cuh"

extern "C" __global__ void tensor_cores(const unsigned short *a, const unsigned short *b, float *c, int n, int k) {
    __shared__ __align__(16) unsigned short tile_a[2][16][16], tile_b[2][8][16];
    int lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
    a += blockIdx.y * 16 * k;
    b += blockIdx.x * 8 * k;
    float sums[4] = {0, 0, 0, 0};
    auto fetch = [&](int first) {
        int row = lane / 2, part = lane % 2 * 8, to = first / 16 % 2;
        copy_async_16(&tile_a[to][row][part], a + row * k + first + part, first + part < k);
        if (row < 8) copy_async_16(&tile_b[to][row][part], b + row * k + first + part, first + part < k);
        copy_async_commit();
    };
    fetch(0);
    for (int first = 0; first < k; first += 16) {
        fetch(first + 16);
        copy_async_wait<1>();
        __syncwarp();
        int at = first / 16 % 2;
        unsigned int fa[4], fb[2];
        ldmatrix_x4(fa, &tile_a[at][lane % 16][lane / 16 * 8]);
        fb[0] = *(const unsigned int *)&tile_b[at][group][pair];
        fb[1] = *(const unsigned int *)&tile_b[at][group][pair + 8];
        mma_bf16(sums, fa, fb);
        __syncwarp();
    }
    copy_async_wait<0>();
    for (int e = 0; e < 4; e++) c[(blockIdx.y * 16 + group + e / 2 * 8) * n + blockIdx.x * 8 + pair + e % 2] = sums[e];
}
