// The CUDA twins of Mini-BERT's operations, one source for float32, float64 and float16.
//
// The definition of each kernel is the function of the same name in minibert/ops/, and the names of all quantities are
// those of docs/gradients.md. The launch code is in backends/cuda/twins.py and attention.py. NVRTC compiles this file
// once per dtype, with -DSTORAGE_BITS=16, 32 or 64: arrays hold `stored`; arithmetic and statistics are `real` (float
// for float16). A value read from an array at the place i has the array's name and _i: dy_i = dy[i].
//
// There are five kinds of kernel:
//   flat         a thread per element of a flat array (AdamW, the accumulator)
//   elementwise  a thread per column, blockIdx.y strides over the rows; threads need nothing of each other
//   by row       a warp per row, sums by shuffles; no shared memory, no __syncthreads
//   by column    a block of (COLUMN_TILE, lanes) threads per COLUMN_TILE columns; lane l sums the rows l, l + lanes,
//                l + 2 lanes, ... Then the lanes are summed in a fixed order: the same bits from run to run, without
//                atomics
//   by block     a block per row, for long rows (cross-entropy)
// Arrays are row-major and contiguous unless a stride is passed, in elements. A pointer may be null only where a
// comment says so.

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
const int TILE = 32;  // a block of (TILE, TILE / 4) threads transposes TILE x TILE elements
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

// Return the sum or the maximum over all threads of a one-dimensional block of whole warps, to every thread.
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

// Return to lane 0 the sum over the lanes (threadIdx.y; their number is a power of two) for every column (threadIdx.x).
// In each round a sixteenth of the lanes adds up the others, until one is left: a barrier costs more than a few
// additions.
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

// The row of a by-row kernel, and the lane of a thread in its warp. All lanes of a warp have the same row.
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

// The word of a row (for key = row_key) or of a column (for key = column_key).
__device__ unsigned counter_word(unsigned counter, unsigned key) { return mix(counter * GOLDEN + key); }

__device__ bool kept(unsigned row_word, unsigned column, unsigned column_key, unsigned threshold) {
    return mix(row_word + counter_word(column, column_key)) >= threshold;
}

// The parameters by which the kernels below take dropout: row_numbers (rows,) or null for no dropout, the two words of
// the key, the threshold that the random bits of kept elements reach, and the factor on kept elements.
#define DROPOUT \
    const unsigned *row_numbers, unsigned row_key, unsigned column_key, unsigned threshold, double keep_scale

// y = x * dropout_mask, where dropout_mask is keep_scale for kept elements and 0 for the others
extern "C" __global__ void dropout(const stored* x, DROPOUT, int rows, int columns, stored* y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        bool keep = kept(counter_word(row_numbers[row], row_key), column, column_key, threshold);
        long long i = (long long)row * columns + column;
        store(y, i, keep ? load(x, i) * (real)keep_scale : (real)0);
    }
}

// --- activations --------------------------------------------------------------------------------------------------

// forward(u) returns y; backward(u, &y) returns the derivative of y with respect to u, and y again. u = x + bias.

const double TANH_SCALE = 0.79788456080286536, TANH_CUBIC = 0.044715;  // sqrt(2 / pi)

struct Gelu {
    static __device__ real cumulative(real u) {
        return (real)0.5 + (real)0.5 * erf(u * (real)0.70710678118654752);
    }
    static __device__ real forward(real u) { return u * cumulative(u); }
    static __device__ real backward(real u, real* y) {
        real cumulative_u = cumulative(u);
        *y = u * cumulative_u;
        // derivative = cumulative + u * density, density = exp(-u * u / 2) / sqrt(2 * pi)
        return cumulative_u + u * exp((real)-0.5 * u * u) * (real)0.39894228040143268;
    }
};

struct GeluNew {
    static __device__ real tanh_z(real u) {
        real z = (real)TANH_SCALE * (u + (real)TANH_CUBIC * u * u * u);
        return tanh(z);
    }
    static __device__ real forward(real u) { return (real)0.5 * u * (1 + tanh_z(u)); }
    static __device__ real backward(real u, real* y) {
        real t = tanh_z(u), z_derivative = (real)TANH_SCALE * (1 + (real)(3 * TANH_CUBIC) * u * u);
        *y = (real)0.5 * u * (1 + t);
        return (real)0.5 * (1 + t) + (real)0.5 * u * (1 - t * t) * z_derivative;
    }
};

struct Relu {
    static __device__ real forward(real u) { return u <= 0 ? (real)0 : u; }  // NaN stays NaN
    static __device__ real backward(real u, real* y) {
        *y = forward(u);
        return u <= 0 ? (real)0 : (real)1;
    }
};

template <class Activation>
__device__ void activation_forward(const stored* x, const stored* bias, int rows, int columns, stored* y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    real bias_j = load(bias, column);
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        long long i = (long long)row * columns + column;
        real u = load(x, i) + bias_j;
        store(y, i, Activation::forward(u));
    }
}

// By column. Writes y beside dx, so that the forward pass need not keep y.
template <class Activation>
__device__ void activation_backward(
    const stored* dy, const stored* x, const stored* bias, int rows, int columns, stored* dx, stored* y,
    stored* dbias) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    real dbias_sum = 0;
    if (column < columns) {
        real bias_j = load(bias, column);
        for (int row = threadIdx.y; row < rows; row += blockDim.y) {
            long long i = (long long)row * columns + column;
            real u = load(x, i) + bias_j, y_i, derivative = Activation::backward(u, &y_i);
            real dx_i = load(dy, i) * derivative;
            store(dx, i, dx_i);
            store(y, i, y_i);
            dbias_sum += dx_i;
        }
    }
    dbias_sum = sum_over_lanes(dbias_sum);
    if (threadIdx.y == 0 && column < columns) store(dbias, column, dbias_sum);
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

// dbias (columns,) of a linear layer: the sums of dy (rows, columns) over the rows.
extern "C" __global__ void column_sums(const stored* dy, int rows, int columns, stored* dbias) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    real dbias_sum = 0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += blockDim.y)
            dbias_sum += load(dy, (long long)row * columns + column);
    dbias_sum = sum_over_lanes(dbias_sum);
    if (threadIdx.y == 0 && column < columns) store(dbias, column, dbias_sum);
}

// --- layer norm, alone and as the end of a sub-layer --------------------------------------------------------------

// y, x_mean and inverse_deviation of one row, by one warp. x is (columns,); the lanes that read an element wrote it.
__device__ void layer_norm_row(const stored* x, const stored* weight, const stored* bias, double eps, int columns,
                               stored* y, real* x_mean_of_row, real* inverse_deviation_of_row) {
    int lane = lane_of_warp();
    real x_sum = 0, squares = 0;
    for (int column = lane; column < columns; column += WARP) x_sum += load(x, column);
    real x_mean = warp_sum(x_sum) / columns;
    for (int column = lane; column < columns; column += WARP) {
        real centred = load(x, column) - x_mean;
        squares += centred * centred;
    }
    real inverse_deviation = 1 / sqrt(warp_sum(squares) / columns + (real)eps);
    for (int column = lane; column < columns; column += WARP) {
        real n = (load(x, column) - x_mean) * inverse_deviation;
        store(y, column, n * load(weight, column) + load(bias, column));
    }
    if (lane == 0) {
        *x_mean_of_row = x_mean;
        *inverse_deviation_of_row = inverse_deviation;
    }
}

extern "C" __global__ void layer_norm_forward(const stored* x, const stored* weight, const stored* bias, double eps,
                                              int rows, int columns, stored* y, real* x_mean, real* inverse_deviation) {
    long long row = row_of_warp();
    if (row >= rows) return;
    layer_norm_row(x + row * columns, weight, bias, eps, columns, y + row * columns, x_mean + row,
                   inverse_deviation + row);
}

// total = residual + dropout(x + bias); y = layer_norm(total)
extern "C" __global__ void dropout_add_layer_norm_forward(
    const stored* x, const stored* bias, const stored* residual, const stored* weight, const stored* norm_bias,
    double eps, DROPOUT, int rows, int columns, stored* y, stored* total, real* x_mean, real* inverse_deviation) {
    long long row = row_of_warp();
    if (row >= rows) return;
    unsigned row_word = row_numbers ? counter_word(row_numbers[row], row_key) : 0;
    for (int column = lane_of_warp(); column < columns; column += WARP) {
        long long i = row * columns + column;
        real dropped = load(x, i) + load(bias, column);
        if (row_numbers)
            dropped = kept(row_word, column, column_key, threshold) ? dropped * (real)keep_scale : (real)0;
        store(total, i, load(residual, i) + dropped);
    }
    layer_norm_row(total + row * columns, weight, norm_bias, eps, columns, y + row * columns, x_mean + row,
                   inverse_deviation + row);
}

// dtotal of one row of y = layer_norm(total), by one warp; and with dropout dx = dtotal * dropout_mask. For a layer
// norm alone, which has no dropout, total is x and dtotal is dx.
__device__ void layer_norm_backward_row(const stored* dy, const stored* total, const stored* weight, const real* x_mean,
                                        const real* inverse_deviation, DROPOUT, long long row, int columns,
                                        stored* dtotal, stored* dx) {
    int lane = lane_of_warp();
    real x_mean_i = x_mean[row], inverse_deviation_i = inverse_deviation[row], dn_sum = 0, dn_n_sum = 0;
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        real dn = load(dy, i) * load(weight, column);  // y = n * weight + bias
        dn_sum += dn;
        dn_n_sum += dn * (load(total, i) - x_mean_i) * inverse_deviation_i;  // dn * n
    }
    real dn_mean = warp_sum(dn_sum) / columns;
    real dn_n_mean = warp_sum(dn_n_sum) / columns;
    unsigned row_word = row_numbers ? counter_word(row_numbers[row], row_key) : 0;
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        // n = (total - x_mean) * inverse_deviation, where x_mean and inverse_deviation depend on total, too
        real n = (load(total, i) - x_mean_i) * inverse_deviation_i;
        real dn = load(dy, i) * load(weight, column);
        real dtotal_i = (dn - dn_mean - n * dn_n_mean) * inverse_deviation_i;
        store(dtotal, i, dtotal_i);
        // total = residual + (x + bias) * dropout_mask
        if (row_numbers)
            store(dx, i, kept(row_word, column, column_key, threshold) ? dtotal_i * (real)keep_scale : (real)0);
    }
}

// dweight and dnorm_bias of a column, by a column of threads; and dbias, the sum of dx, unless it is null. For a layer
// norm alone, total is x and dnorm_bias is dbias.
__device__ void layer_norm_backward_column(const stored* dy, const stored* total, const real* x_mean,
                                           const real* inverse_deviation, const stored* dx, int rows, int columns,
                                           int column, stored* dweight, stored* dnorm_bias, stored* dbias) {
    real dweight_sum = 0, dnorm_bias_sum = 0, dbias_sum = 0;
    if (column < columns) {
        for (int row = threadIdx.y; row < rows; row += blockDim.y) {
            long long i = (long long)row * columns + column;
            real dy_i = load(dy, i);
            dweight_sum += dy_i * (load(total, i) - x_mean[row]) * inverse_deviation[row];  // dy * n
            dnorm_bias_sum += dy_i;
            if (dbias) dbias_sum += load(dx, i);
        }
    }
    dweight_sum = sum_over_lanes(dweight_sum);
    dnorm_bias_sum = sum_over_lanes(dnorm_bias_sum);
    if (dbias) dbias_sum = sum_over_lanes(dbias_sum);
    if (threadIdx.y > 0 || column >= columns) return;
    store(dweight, column, dweight_sum);
    store(dnorm_bias, column, dnorm_bias_sum);
    if (dbias) store(dbias, column, dbias_sum);
}

// The rows and the columns of a layer norm alone are independent: the first `row_blocks` blocks take the rows, a warp
// each, and the other blocks the columns.
extern "C" __global__ void layer_norm_backward(
    const stored* dy, const stored* x, const stored* weight, const real* x_mean, const real* inverse_deviation,
    int rows, int columns, int row_blocks, stored* dx, stored* dweight, stored* dbias) {
    if ((int)blockIdx.x < row_blocks) {
        long long row = row_of_warp();
        if (row < rows)
            layer_norm_backward_row(dy, x, weight, x_mean, inverse_deviation, 0, 0, 0, 0, 0, row, columns, dx, 0);
    } else {
        int column = (blockIdx.x - row_blocks) * blockDim.x + threadIdx.x;
        layer_norm_backward_column(dy, x, x_mean, inverse_deviation, 0, rows, columns, column, dweight, dbias, 0);
    }
}

// In a sub-layer, the sums over columns need dx, so that the rows come first: two launches. dresidual is dtotal.
extern "C" __global__ void dropout_add_layer_norm_backward_rows(
    const stored* dy, const stored* total, const stored* weight, const real* x_mean, const real* inverse_deviation,
    DROPOUT, int rows, int columns, stored* dtotal, stored* dx) {
    long long row = row_of_warp();
    if (row >= rows) return;
    layer_norm_backward_row(dy, total, weight, x_mean, inverse_deviation, row_numbers, row_key, column_key, threshold,
                            keep_scale, row, columns, dtotal, dx);
}

extern "C" __global__ void dropout_add_layer_norm_backward_columns(
    const stored* dy, const stored* total, const real* x_mean, const real* inverse_deviation, const stored* dx,
    int rows, int columns, stored* dweight, stored* dnorm_bias, stored* dbias) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    layer_norm_backward_column(dy, total, x_mean, inverse_deviation, dx, rows, columns, column, dweight, dnorm_bias,
                               dbias);
}

// --- cross-entropy: a block per row of logits --------------------------------------------------------------------

__device__ real clip(real x, real bound) { return x < -bound ? -bound : x > bound ? bound : x; }

// Return exponential_sum, the sum of exp(clip(logits) - clipped_maximum) over a row; and the maximum, at least -bound.
__device__ real exponential_sum_of_row(const stored* logits, int columns, real bound, real* maximum_of_row) {
    real maximum = -bound, exponential_sum = 0;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        real logit = load(logits, column);
        if (logit > maximum) maximum = logit;
    }
    maximum = block_reduce(maximum, true);
    *maximum_of_row = maximum;
    real clipped_maximum = maximum > bound ? bound : maximum;
    for (int column = threadIdx.x; column < columns; column += blockDim.x)
        exponential_sum += exp(clip(load(logits, column), bound) - clipped_maximum);
    return block_reduce(exponential_sum, false);
}

// -log softmax(logits)[label], 0 where the label is negative.
__device__ real loss_of_row(const stored* logits, int label, real maximum, real exponential_sum) {
    if (label < 0) return 0;
    real label_logit = load(logits, label);
    return log(exponential_sum) - (label_logit - maximum);
}

extern "C" __global__ void cross_entropy_forward(const stored* logits, const int* labels, int columns, double bound,
                                                 stored* losses) {
    const stored* row = logits + (long long)blockIdx.x * columns;
    real maximum, exponential_sum = exponential_sum_of_row(row, columns, (real)bound, &maximum);
    if (threadIdx.x == 0) store(losses, blockIdx.x, loss_of_row(row, labels[blockIdx.x], maximum, exponential_sum));
}

// dlogits = (softmax(logits) - one_hot) * scale, 0 where the label is negative; and the losses.
extern "C" __global__ void cross_entropy_backward(const stored* logits, const int* labels, int columns, double bound,
                                                  double scale, stored* losses, stored* dlogits) {
    long long start = (long long)blockIdx.x * columns;
    int label = labels[blockIdx.x];
    real maximum, exponential_sum = exponential_sum_of_row(logits + start, columns, (real)bound, &maximum);
    if (threadIdx.x == 0)  // from the maximum before clipping, so that an infinite logit shows in the loss
        store(losses, blockIdx.x, loss_of_row(logits + start, label, maximum, exponential_sum));
    real clipped_maximum = maximum > (real)bound ? (real)bound : maximum;
    real inverse_sum = clipped_maximum == -(real)bound ? (real)0 : 1 / exponential_sum;  // as in stable_softmax
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        real logit = clip(load(logits, start + column), (real)bound), one_hot = column == label ? (real)1 : (real)0;
        real dlogit = (exp(logit - clipped_maximum) * inverse_sum - one_hot) * (real)scale;
        store(dlogits, start + column, label < 0 ? (real)0 : dlogit);
    }
}

// --- the accumulator: flat arrays ---------------------------------------------------------------------------------

// total += weight * values
extern "C" __global__ void add_scaled(stored* total, const stored* values, double weight, long long size) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) store(total, i, load(total, i) + (real)weight * load(values, i));
}

// --- AdamW over a flat array --------------------------------------------------------------------------------------

// step_size, root_correction and decay come from adamw_factors in backends/base.py; gradient_scale points at one number
// on the device.
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

// y = table0[ids0] + table1[ids1] + table2[ids2]; table1 and table2 may be null.
extern "C" __global__ void embedding_forward(
    const stored* table0, const stored* table1, const stored* table2, const int* ids0, const int* ids1,
    const int* ids2, int rows, int columns, stored* y) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        real y_i = load(table0, (long long)ids0[row] * columns + column);
        if (table1) y_i += load(table1, (long long)ids1[row] * columns + column);
        if (table2) y_i += load(table2, (long long)ids2[row] * columns + column);
        store(y, (long long)row * columns + column, y_i);
    }
}

// target[indices[i]] += rows[i], deterministically. `order` sorts the indices, and blockIdx.x is a place in that order.
// The block where a run of equal indices begins sums the whole run, lane by lane; the other blocks of the run return.
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
