// The CUDA twins of Mini-BERT's operations, one source for float32, float64 and float16.
//
// What each kernel must compute is defined in minibert/ops/, by the function of the same name; the launch code
// is in backends/cuda/twins.py and attention.py. This file is compiled once per dtype by NVRTC, with
// -DSTORAGE_BITS=16, 32 or 64: arrays hold `stored`, arithmetic and statistics are `real` (float for float16).
//
// Three shapes of kernel occur:
//   elementwise  a thread per column, blockIdx.y strides over the rows; threads need nothing of each other
//   by row       a warp per row, sums by shuffles; no shared memory, no __syncthreads
//   by column    a block of (COLUMN_TILE, lanes) threads per COLUMN_TILE columns; every lane sums every lanes-th
//                row, then the lanes are summed in a fixed order: the same bits from run to run, without atomics
// Arrays are row-major and contiguous unless a stride is passed, in elements. A pointer marked "or null" may be.

#if STORAGE_BITS == 16
typedef unsigned short stored;  // the bits of an IEEE half; no header is needed for two instructions
typedef float real;
#ifdef CUDA_EMULATION
__device__ inline real load(const stored* x, long long i) { return emulation::half_to_float(x[i]); }
__device__ inline void store(stored* x, long long i, real value) { x[i] = emulation::float_to_half(value); }
#else
__device__ inline real load(const stored* x, long long i) {
    real value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x[i]));
    return value;
}
__device__ inline void store(stored* x, long long i, real value) {
    stored bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    x[i] = bits;
}
#endif
#else
#if STORAGE_BITS == 32
typedef float real;
#elif STORAGE_BITS == 64
typedef double real;
#endif
typedef real stored;
__device__ inline real load(const stored* x, long long i) { return x[i]; }
__device__ inline void store(stored* x, long long i, real value) { x[i] = value; }
#endif

const int WARP = 32;
const int TILE = 32;  // a block of (TILE, TILE / 4) threads turns TILE x TILE elements over
const unsigned EVERY_LANE = 0xffffffffu;

extern __shared__ double shared_memory[];  // sized by the launch; double, so that every type is aligned

// --- sums -----------------------------------------------------------------------------------------------------

__device__ real warp_sum(real value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(EVERY_LANE, value, distance);
    return value;
}

__device__ real warp_max(real value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        real other = __shfl_xor_sync(EVERY_LANE, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// Of all threads of a one-dimensional block of whole warps; every thread gets the result.
__device__ real block_reduce(real value, bool maximum) {
    real* of_warp = (real*)shared_memory;
    value = maximum ? warp_max(value) : warp_sum(value);
    __syncthreads();  // the previous result has been read
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < (int)blockDim.x / WARP; warp++) {
        real other = of_warp[warp];
        value = maximum ? (other > value ? other : value) : value + other;
    }
    return value;
}

// Of the lanes (threadIdx.y, a power of two of them) for every column (threadIdx.x); lane 0 gets the result. A
// sixteenth of the lanes adds up the others, until one is left: a barrier costs more than a few additions.
__device__ real sum_over_lanes(real value) {
    real* partial = (real*)shared_memory;
    int lane = threadIdx.y, width = blockDim.x;
    __syncthreads();  // the previous sum has been read
    partial[lane * width + threadIdx.x] = value;
    for (int lanes = blockDim.y, left; lanes > 1; lanes = left) {
        left = lanes > 16 ? lanes / 16 : 1;
        __syncthreads();
        if (lane >= left) continue;
        for (int other = lane + left; other < lanes; other += left) value += partial[other * width + threadIdx.x];
        partial[lane * width + threadIdx.x] = value;
    }
    return value;
}

// The row of a by-row kernel, and the place of a thread in its warp. All lanes of a warp have the same row.
__device__ int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }
__device__ long long row_of_warp() {
    return (long long)blockIdx.x * (blockDim.x * blockDim.y / WARP) + thread_of_block() / WARP;
}
__device__ int lane_of_warp() { return thread_of_block() % WARP; }

// --- dropout: the bits of minibert/random_bits.py -----------------------------------------------------------------

__device__ unsigned mix(unsigned word) {
    word ^= word >> 16;
    word *= 0x7feb352du;
    word ^= word >> 15;
    word *= 0x846ca68bu;
    return word ^ (word >> 16);
}

const unsigned GOLDEN = 0x9e3779b9u;

__device__ unsigned row_word(unsigned row_number, unsigned key_low) { return mix(row_number * GOLDEN + key_low); }

__device__ bool kept(unsigned word_of_row, unsigned column, unsigned key_high, unsigned threshold) {
    return mix(word_of_row + mix(column * GOLDEN + key_high)) >= threshold;
}

// How the kernels below take dropout: `row_numbers` (rows,) or null for none, the two words of the key, the bits
// below which an element is dropped, and the factor on those that are kept.
#define DROPOUT const unsigned *row_numbers, unsigned key_low, unsigned key_high, unsigned threshold, double factor

extern "C" __global__ void dropout(const stored* x, DROPOUT, int rows, int columns, stored* y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        bool keep = kept(row_word(row_numbers[row], key_low), column, key_high, threshold);
        long long i = (long long)row * columns + column;
        store(y, i, keep ? load(x, i) * (real)factor : (real)0);
    }
}

// --- activations --------------------------------------------------------------------------------------------------

struct Gelu {
    static __device__ real value(real u) { return u * ((real)0.5 + (real)0.5 * erf(u * (real)0.70710678118654752)); }
    static __device__ real slope(real u, real* value) {  // Phi(u) + u * phi(u)
        real cumulative = (real)0.5 + (real)0.5 * erf(u * (real)0.70710678118654752);
        *value = u * cumulative;
        return cumulative + u * exp((real)-0.5 * u * u) * (real)0.39894228040143268;
    }
};

struct GeluNew {
    static __device__ real bent(real u) {
        return tanh((real)0.79788456080286536 * (u + (real)0.044715 * u * u * u));
    }
    static __device__ real value(real u) { return (real)0.5 * u * (1 + bent(u)); }
    static __device__ real slope(real u, real* value) {
        real t = bent(u), inner = (real)0.79788456080286536 * (1 + (real)(3 * 0.044715) * u * u);
        *value = (real)0.5 * u * (1 + t);
        return (real)0.5 * (1 + t) + (real)0.5 * u * (1 - t * t) * inner;
    }
};

struct Relu {
    static __device__ real value(real u) { return u <= 0 ? (real)0 : u; }  // NaN stays NaN
    static __device__ real slope(real u, real* value) {
        *value = Relu::value(u);
        return u <= 0 ? (real)0 : (real)1;
    }
};

template <class Activation>
__device__ void activation_forward(const stored* x, const stored* bias, int rows, int columns, stored* y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    real shift = load(bias, column);
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        long long i = (long long)row * columns + column;
        store(y, i, Activation::value(load(x, i) + shift));
    }
}

// By column. Returns y again beside dx, so that the forward pass need not keep it.
template <class Activation>
__device__ void activation_backward(
    const stored* dy, const stored* x, const stored* bias, int rows, int columns, stored* dx, stored* y,
    stored* dbias) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    real sum = 0;
    if (column < columns) {
        real shift = load(bias, column);
        for (int row = threadIdx.y; row < rows; row += blockDim.y) {
            long long i = (long long)row * columns + column;
            real value, gradient = load(dy, i) * Activation::slope(load(x, i) + shift, &value);
            store(dx, i, gradient);
            store(y, i, value);
            sum += gradient;
        }
    }
    sum = sum_over_lanes(sum);
    if (threadIdx.y == 0 && column < columns) store(dbias, column, sum);
}

#define ACTIVATION(name, Activation)                                                                                 \
    extern "C" __global__ void bias_##name##_forward(                                                                \
        const stored* x, const stored* bias, int rows, int columns, stored* y) {                                     \
        activation_forward<Activation>(x, bias, rows, columns, y);                                                   \
    }                                                                                                                \
    extern "C" __global__ void bias_##name##_backward(const stored* dy, const stored* x, const stored* bias,         \
        int rows, int columns, stored* dx, stored* y, stored* dbias) {                                               \
        activation_backward<Activation>(dy, x, bias, rows, columns, dx, y, dbias);                                   \
    }

ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_new, GeluNew)
ACTIVATION(relu, Relu)

// The gradient of a bias (columns,): the sums of dy (rows, columns).
extern "C" __global__ void column_sums(const stored* dy, int rows, int columns, stored* dbias) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    real sum = 0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += blockDim.y) sum += load(dy, (long long)row * columns + column);
    sum = sum_over_lanes(sum);
    if (threadIdx.y == 0 && column < columns) store(dbias, column, sum);
}

// --- layer norm, alone and as the end of a sub-layer --------------------------------------------------------------

// One row, by one warp; `x` is (columns,) and was written by the very lanes that read it.
__device__ void normalise(const stored* x, const stored* weight, const stored* bias, double eps, int columns,
                          stored* y, real* mean_of_row, real* inverse_of_row) {
    int lane = lane_of_warp();
    real sum = 0, squares = 0;
    for (int column = lane; column < columns; column += WARP) sum += load(x, column);
    real mean = warp_sum(sum) / columns;
    for (int column = lane; column < columns; column += WARP) {
        real centred = load(x, column) - mean;
        squares += centred * centred;
    }
    real inverse = 1 / sqrt(warp_sum(squares) / columns + (real)eps);
    for (int column = lane; column < columns; column += WARP)
        store(y, column, (load(x, column) - mean) * inverse * load(weight, column) + load(bias, column));
    if (lane == 0) {
        *mean_of_row = mean;
        *inverse_of_row = inverse;
    }
}

extern "C" __global__ void layer_norm_forward(const stored* x, const stored* weight, const stored* bias, double eps,
                                              int rows, int columns, stored* y, real* mean, real* inverse) {
    long long row = row_of_warp();
    if (row >= rows) return;
    normalise(x + row * columns, weight, bias, eps, columns, y + row * columns, mean + row, inverse + row);
}

// total = residual + dropout(x + bias); y = layer_norm(total)
extern "C" __global__ void dropout_add_layer_norm_forward(
    const stored* x, const stored* bias, const stored* residual, const stored* weight, const stored* norm_bias,
    double eps, DROPOUT, int rows, int columns, stored* y, stored* total, real* mean, real* inverse) {
    long long row = row_of_warp();
    if (row >= rows) return;
    unsigned word = row_numbers ? row_word(row_numbers[row], key_low) : 0;
    for (int column = lane_of_warp(); column < columns; column += WARP) {
        long long i = row * columns + column;
        real value = load(x, i) + load(bias, column);
        if (row_numbers) value = kept(word, column, key_high, threshold) ? value * (real)factor : (real)0;
        store(total, i, load(residual, i) + value);
    }
    normalise(total + row * columns, weight, norm_bias, eps, columns, y + row * columns, mean + row, inverse + row);
}

// dtotal of one row of y = layer_norm(total), by one warp; and with dropout dx, the gradient of what was dropped out.
__device__ void backward_of_row(const stored* dy, const stored* total, const stored* weight, const real* mean,
                                const real* inverse, DROPOUT, long long row, int columns, stored* dtotal, stored* dx) {
    int lane = lane_of_warp();
    real centre = mean[row], scale = inverse[row], sum = 0, along = 0;
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        real dnormalised = load(dy, i) * load(weight, column);
        sum += dnormalised;
        along += dnormalised * (load(total, i) - centre) * scale;
    }
    sum = warp_sum(sum) / columns;
    along = warp_sum(along) / columns;
    unsigned word = row_numbers ? row_word(row_numbers[row], key_low) : 0;
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        real normalised = (load(total, i) - centre) * scale;
        real value = (load(dy, i) * load(weight, column) - sum - normalised * along) * scale;
        store(dtotal, i, value);
        if (row_numbers) store(dx, i, kept(word, column, key_high, threshold) ? value * (real)factor : (real)0);
    }
}

// dweight and dnorm_bias of a column, by a column of threads; and dbias, the sum of dx, unless null.
__device__ void backward_of_column(const stored* dy, const stored* total, const real* mean, const real* inverse,
                                   const stored* dx, int rows, int columns, int column, stored* dweight,
                                   stored* dnorm_bias, stored* dbias) {
    real of_weight = 0, of_norm_bias = 0, of_bias = 0;
    if (column < columns) {
        for (int row = threadIdx.y; row < rows; row += blockDim.y) {
            long long i = (long long)row * columns + column;
            real gradient = load(dy, i);
            of_weight += gradient * (load(total, i) - mean[row]) * inverse[row];
            of_norm_bias += gradient;
            if (dbias) of_bias += load(dx, i);
        }
    }
    of_weight = sum_over_lanes(of_weight);
    of_norm_bias = sum_over_lanes(of_norm_bias);
    if (dbias) of_bias = sum_over_lanes(of_bias);
    if (threadIdx.y > 0 || column >= columns) return;
    store(dweight, column, of_weight);
    store(dnorm_bias, column, of_norm_bias);
    if (dbias) store(dbias, column, of_bias);
}

// Alone, rows and columns need nothing of each other: the first `row_blocks` blocks take the rows, a warp each.
extern "C" __global__ void layer_norm_backward(
    const stored* dy, const stored* total, const stored* weight, const real* mean, const real* inverse, int rows,
    int columns, int row_blocks, stored* dtotal, stored* dweight, stored* dbias) {
    if ((int)blockIdx.x < row_blocks) {
        long long row = row_of_warp();
        if (row < rows) backward_of_row(dy, total, weight, mean, inverse, 0, 0, 0, 0, 0, row, columns, dtotal, 0);
    } else {
        int column = (blockIdx.x - row_blocks) * blockDim.x + threadIdx.x;
        backward_of_column(dy, total, mean, inverse, 0, rows, columns, column, dweight, dbias, 0);
    }
}

// In a sub-layer, the sums of dx follow on dx.
extern "C" __global__ void dropout_add_layer_norm_backward_rows(
    const stored* dy, const stored* total, const stored* weight, const real* mean, const real* inverse, DROPOUT,
    int rows, int columns, stored* dtotal, stored* dx) {
    long long row = row_of_warp();
    if (row >= rows) return;
    backward_of_row(dy, total, weight, mean, inverse, row_numbers, key_low, key_high, threshold, factor, row, columns,
                    dtotal, dx);
}

extern "C" __global__ void dropout_add_layer_norm_backward_columns(
    const stored* dy, const stored* total, const real* mean, const real* inverse, const stored* dx, int rows,
    int columns, stored* dweight, stored* dnorm_bias, stored* dbias) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    backward_of_column(dy, total, mean, inverse, dx, rows, columns, column, dweight, dnorm_bias, dbias);
}

// --- cross-entropy: a block per row of logits --------------------------------------------------------------------

// The largest logit of a row, at least -bound, and the sum of the exponentials of what the others lie below it, all
// clipped to +-bound.
__device__ real row_total(const stored* logits, int columns, real bound, real* maximum) {
    real largest = -bound, total = 0;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        real value = load(logits, column);
        if (value > largest) largest = value;
    }
    largest = block_reduce(largest, true);
    *maximum = largest;
    if (largest > bound) largest = bound;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        real value = load(logits, column);
        total += exp((value < -bound ? -bound : value > bound ? bound : value) - largest);
    }
    return block_reduce(total, false);
}

// -log softmax(logits)[label], 0 where the label is negative.
extern "C" __global__ void cross_entropy_forward(const stored* logits, const int* labels, int columns, double bound,
                                                 stored* losses) {
    const stored* row = logits + (long long)blockIdx.x * columns;
    int label = labels[blockIdx.x];
    real largest, total = row_total(row, columns, (real)bound, &largest);
    if (threadIdx.x == 0) store(losses, blockIdx.x, label < 0 ? (real)0 : log(total) - (load(row, label) - largest));
}

extern "C" __global__ void cross_entropy_backward(const stored* logits, const int* labels, int columns, double bound,
                                                  double scale, stored* losses, stored* dlogits) {
    long long start = (long long)blockIdx.x * columns;
    int label = labels[blockIdx.x];
    real largest, total = row_total(logits + start, columns, (real)bound, &largest);
    if (threadIdx.x == 0)  // from the largest as it is, so that an infinite logit shows in the loss
        store(losses, blockIdx.x, label < 0 ? (real)0 : log(total) - (load(logits, start + label) - largest));
    if (largest > (real)bound) largest = (real)bound;
    real share = largest == -(real)bound ? (real)0 : 1 / total;  // as in stable_softmax: nothing to share
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        real value = load(logits, start + column);
        value = value < -(real)bound ? -(real)bound : value > (real)bound ? (real)bound : value;
        real gradient = (exp(value - largest) * share - (column == label ? (real)1 : (real)0)) * (real)scale;
        store(dlogits, start + column, label < 0 ? (real)0 : gradient);
    }
}

// --- AdamW over a flat array --------------------------------------------------------------------------------------

// step_size = learning_rate / (1 - beta1^step), root_correction = 1 / sqrt(1 - beta2^step), decay = 1 - learning_rate *
// weight_decay; gradient_scale points at one number on the device.
extern "C" __global__ void adamw_update(
    stored* parameters, const stored* gradients, stored* first_moment, stored* second_moment,
    const stored* gradient_scale, double beta1, double beta2, double epsilon, double step_size,
    double root_correction, double decay, long long size) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    real gradient = load(gradients, i) * load(gradient_scale, 0);
    real first = load(first_moment, i) * (real)beta1 + (real)(1 - beta1) * gradient;
    real second = load(second_moment, i) * (real)beta2 + (real)(1 - beta2) * (gradient * gradient);
    store(first_moment, i, first);
    store(second_moment, i, second);
    real denominator = sqrt(second) * (real)root_correction + (real)epsilon;
    store(parameters, i, load(parameters, i) * (real)decay - (real)step_size * (first / denominator));
}

// --- embeddings ---------------------------------------------------------------------------------------------------

// The sum of one row of each of up to three tables; the second and the third may be null.
extern "C" __global__ void embedding_forward(
    const stored* table0, const stored* table1, const stored* table2, const int* ids0, const int* ids1,
    const int* ids2, int rows, int columns, stored* y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        real sum = load(table0, (long long)ids0[row] * columns + column);
        if (table1) sum += load(table1, (long long)ids1[row] * columns + column);
        if (table2) sum += load(table2, (long long)ids2[row] * columns + column);
        store(y, (long long)row * columns + column, sum);
    }
}

// target[indices[i]] += rows[i], deterministically. `order` sorts the indices; the block (x = place in that order)
// where a run of equal indices begins sums the whole run, lane by lane, and the others have nothing to do.
extern "C" __global__ void scatter_add_runs(const int* indices, const long long* order, const stored* rows, int count,
                                            int columns, stored* target) {
    int first = blockIdx.x, index = indices[order[first]];
    if (first > 0 && indices[order[first - 1]] == index) return;
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    real sum = 0;
    if (column < columns)
        for (int i = first + threadIdx.y; i < count && indices[order[i]] == index; i += blockDim.y)
            sum += load(rows, order[i] * columns + column);
    sum = sum_over_lanes(sum);
    long long place = (long long)index * columns + column;
    if (threadIdx.y == 0 && column < columns) store(target, place, load(target, place) + sum);
}
