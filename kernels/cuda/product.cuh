// Products of tiles: sums[m][n] += sum over k of a[m][k] b[k][n], by a whole block of threads. The sums of a thread stay
// in its registers from `add` to `add`; factors pass through shared memory, of which a product has BYTES.
//
// Factors may lie any way round: ROW and COL are the strides of their rows and columns. Whichever of them is 1 says in
// which order threads read, so that neighbours read neighbours. Rows, columns and steps that are not there are zeros.
#pragma once
#include "graphc.cuh"

// Any type of numbers: fused multiply-add on TM x TN sums of each thread ------------------------------------------------

template <typename T, typename F, int THREADS, int BM, int BN, i64 A_ROW, i64 A_COL, i64 B_ROW, i64 B_COL>
struct Product {
    static const int TM = BM * BN / THREADS >= 64 ? 8 : 4, TN = BM * BN / THREADS / TM, BK = 16;
    static const int ACROSS = BN / TN, A_PITCH = BM + 4, B_PITCH = BN + 4;
    static const int A_EACH = BM * BK / THREADS, B_EACH = BN * BK / THREADS;
    static const int BYTES = BK * (A_PITCH + B_PITCH) * sizeof(T);
    T sums[TM][TN];

    CORE_MEMBER Product() {
        for (int i = 0; i < TM; i++)
            for (int j = 0; j < TN; j++) sums[i][j] = 0;
    }

    // This thread's rows are in fours, its columns too: four neighbours are one access to shared memory.
    CORE_MEMBER int row(int i) const { return threadIdx.x / ACROSS * 4 + i / 4 * (BM * 4 / TM) + i % 4; }
    CORE_MEMBER int column(int j) const { return threadIdx.x % ACROSS * 4 + j / 4 * (BN * 4 / TN) + j % 4; }

    // Element e of those that this thread brings: its row (or column) and its step.
    template <int SIZE, bool STEPS_TOGETHER> CORE_MEMBER static void place(int e, int &at, int &step) {
        const int i = e * THREADS + threadIdx.x;
        at = STEPS_TOGETHER ? i / BK : i % SIZE;
        step = STEPS_TOGETHER ? i % BK : i / SIZE;
    }

    CORE_MEMBER void bring(T (&x)[A_EACH], T (&y)[B_EACH], const F *a, const F *b, i64 m, i64 n, i64 k, i64 from) const {
        int at, step;
        #pragma unroll
        for (int e = 0; e < A_EACH; e++) {
            place<BM, A_COL == 1>(e, at, step);
            x[e] = at < m && from + step < k ? (T)a[at * A_ROW + (from + step) * A_COL] : (T)0;
        }
        #pragma unroll
        for (int e = 0; e < B_EACH; e++) {
            place<BN, B_ROW == 1>(e, at, step);
            y[e] = at < n && from + step < k ? (T)b[(from + step) * B_ROW + at * B_COL] : (T)0;
        }
    }

    CORE_MEMBER void add(const F *a, const F *b, i64 m, i64 n, i64 k, void *memory) {
        T(*as)[A_PITCH] = (T(*)[A_PITCH])memory;
        T(*bs)[B_PITCH] = (T(*)[B_PITCH])(as + BK);
        T x[A_EACH], y[B_EACH];
        bring(x, y, a, b, m, n, k, 0);
        for (i64 from = 0; from < k; from += BK) {
            int at, step;
            #pragma unroll
            for (int e = 0; e < A_EACH; e++) place<BM, A_COL == 1>(e, at, step), as[step][at] = x[e];
            #pragma unroll
            for (int e = 0; e < B_EACH; e++) place<BN, B_ROW == 1>(e, at, step), bs[step][at] = y[e];
            __syncthreads();
            if (from + BK < k) bring(x, y, a, b, m, n, k, from + BK);  // while these are multiplied
            #pragma unroll
            for (int s = 0; s < BK; s++) {
                T u[TM], v[TN];
                #pragma unroll
                for (int i = 0; i < TM; i++) u[i] = as[s][row(i)];
                #pragma unroll
                for (int j = 0; j < TN; j++) v[j] = bs[s][column(j)];
                #pragma unroll
                for (int i = 0; i < TM; i++)
                    #pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] = multiply_add(u[i], v[j], sums[i][j]);
            }
            __syncthreads();
        }
    }

    template <bool ACCUMULATE> CORE_MEMBER void store(T *c, i64 pitch, i64 m, i64 n) const {
        #pragma unroll
        for (int i = 0; i < TM; i++)
            #pragma unroll
            for (int j = 0; j < TN; j++)
                if (row(i) < m && column(j) < n) {
                    T *at = c + row(i) * pitch + column(j);
                    *at = ACCUMULATE ? *at + sums[i][j] : sums[i][j];
                }
    }
};

// 16-bit factors, sums of float32: tensor cores -------------------------------------------------------------------------

struct Bf16 { static CORE_MEMBER void mma(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b); } };
struct F16 { static CORE_MEMBER void mma(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); } };

// One factor in shared memory, SIZE rows (or columns) by BK steps: steps together, or the rows of a step together. A
// pitch of 8 elements more than that puts the rows that ldmatrix reads into different banks.
template <int SIZE, int BK, bool STEPS_TOGETHER, int THREADS, i64 AT, i64 STEP, bool WIDE> struct Panel {
    static const int PITCH = (STEPS_TOGETHER ? BK : SIZE) + 8, LINES = STEPS_TOGETHER ? SIZE : BK;
    static const int BYTES = LINES * PITCH * 2, LONG = PITCH - 8;

    CORE_MEMBER static void bring(u16 *to, const u16 *from, i64 size, i64 first, i64 steps) {
        const int each = WIDE ? 8 : 1;
        #pragma unroll
        for (int i = threadIdx.x * each; i < LINES * LONG; i += THREADS * each) {
            const int line = i / LONG, place = i % LONG;
            const i64 at = STEPS_TOGETHER ? line : place, step = first + (STEPS_TOGETHER ? place : line);
            const bool inside = at < size && step < steps;
            const u16 *source = from + at * AT + step * STEP;
            if constexpr (WIDE) copy_async_16(to + line * PITCH + place, inside ? source : from, inside);
            else to[line * PITCH + place] = inside ? *source : (u16)0;
        }
    }

    // 16 rows from `at` on by 16 steps from `step` on, as four 8 x 8 matrices: as mma takes a, or (PAIRS) b.
    template <bool PAIRS> CORE_MEMBER static void fragment(u32 (&d)[4], const u16 *panel, int at, int step) {
        const int lane = threadIdx.x % 32, matrix = lane / 8, one = lane % 8;
        const int down = (PAIRS ? matrix / 2 : matrix % 2) * 8, on = (PAIRS ? matrix % 2 : matrix / 2) * 8;
        if constexpr (STEPS_TOGETHER) ldmatrix_x4(d, panel + (at + down + one) * PITCH + step + on);
        else ldmatrix_x4_trans(d, panel + (step + on + one) * PITCH + at + down);
    }
};

template <typename Type, int THREADS, int BM, int BN, i64 A_ROW, i64 A_COL, i64 B_ROW, i64 B_COL, bool A_WIDE, bool B_WIDE>
struct TensorProduct {
    static const int BK = 32, STAGES = 3, WARPS = THREADS / 32, DOWN = 2, ACROSS = WARPS / DOWN;
    static const int WM = BM / DOWN, WN = BN / ACROSS;  // of a warp
    using A = Panel<BM, BK, A_COL == 1, THREADS, A_ROW, A_COL, A_WIDE>;
    using B = Panel<BN, BK, B_ROW == 1, THREADS, B_COL, B_ROW, B_WIDE>;
    static const int STAGE = A::BYTES + B::BYTES, BYTES = STAGES * STAGE;
    f32 sums[WM / 16][WN / 8][4];

    CORE_MEMBER TensorProduct() {
        for (int i = 0; i < WM / 16; i++)
            for (int j = 0; j < WN / 8; j++)
                for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
    }

    CORE_MEMBER static int top() { return threadIdx.x / 32 / ACROSS * WM; }
    CORE_MEMBER static int left() { return threadIdx.x / 32 % ACROSS * WN; }

    CORE_MEMBER static void bring(u16 *stage, const u16 *a, const u16 *b, i64 m, i64 n, i64 k, i64 from) {
        if (from < k) {
            A::bring(stage, a, m, from, k);
            B::bring(stage + A::BYTES / 2, b, n, from, k);
        }
        copy_async_commit();
    }

    CORE_MEMBER void add(const u16 *a, const u16 *b, i64 m, i64 n, i64 k, void *memory) {
        u16 *stages = (u16 *)memory;
        for (int s = 0; s < STAGES - 1; s++) bring(stages + s * (STAGE / 2), a, b, m, n, k, s * BK);
        int now = 0;
        for (i64 from = 0; from < k; from += BK) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // what this stage holds has come; nobody reads the one before any more
            const int next = now == 0 ? STAGES - 1 : now - 1;
            bring(stages + next * (STAGE / 2), a, b, m, n, k, from + (STAGES - 1) * BK);
            multiply(stages + now * (STAGE / 2));
            now = now == STAGES - 1 ? 0 : now + 1;
        }
        copy_async_wait<0>();
        __syncthreads();
    }

    CORE_MEMBER void multiply(const u16 *stage) {
        const u16 *as = stage, *bs = stage + A::BYTES / 2;
        #pragma unroll
        for (int step = 0; step < BK; step += 16) {
            u32 a[WM / 16][4], b[WN / 16][4];
            #pragma unroll
            for (int i = 0; i < WM / 16; i++) A::template fragment<false>(a[i], as, top() + i * 16, step);
            #pragma unroll
            for (int j = 0; j < WN / 16; j++) B::template fragment<true>(b[j], bs, left() + j * 16, step);
            #pragma unroll
            for (int i = 0; i < WM / 16; i++)
                #pragma unroll
                for (int j = 0; j < WN / 8; j++) {
                    const u32 pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    Type::mma(sums[i][j], a[i], pair);
                }
        }
    }

    template <bool ACCUMULATE> CORE_MEMBER void store(f32 *c, i64 pitch, i64 m, i64 n) const {
        const int lane = threadIdx.x % 32;
        #pragma unroll
        for (int i = 0; i < WM / 16; i++)
            #pragma unroll
            for (int j = 0; j < WN / 8; j++)
                #pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int row = top() + i * 16 + lane / 4 + e / 2 * 8, column = left() + j * 8 + lane % 4 * 2 + e % 2;
                    if (row < m && column < n) {
                        f32 *at = c + row * pitch + column;
                        *at = ACCUMULATE ? *at + sums[i][j][e] : sums[i][j][e];
                    }
                }
    }
};
