// The CUDA kernels of attention between its projections: heads apart, softmax with mask and dropout, heads together.
//
// Appended to kernels.cu, whose types and helpers it uses, before compilation. The matrix products between
// these kernels are cuBLAS's; operands are written here in the orientation in which no product needs a copy.

// One head of one sequence between rows (N, attention_heads * width) and slots (batch, attention_heads, slots, width), turned over to
// (batch, attention_heads, width, slots) as well or instead. blockIdx.x counts sequences and heads, blockIdx.y tiles.
// row_of_slot: (batch * slots,), N for an empty slot; or null where slot i holds row i.
__device__ void split_heads(const stored* rows, long long stride, const int* row_of_slot, int count, int attention_heads,
                            int slots, int width, double scale, stored* straight, stored* turned) {
    real(*tile)[TILE + 1] = (real(*)[TILE + 1])shared_memory;  // a column of padding avoids bank conflicts
    int tiles = (width + TILE - 1) / TILE;
    int first_slot = blockIdx.y / tiles * TILE, first_column = blockIdx.y % tiles * TILE;
    int sequence = blockIdx.x / attention_heads, head = blockIdx.x % attention_heads;
    if (first_slot >= slots) return;  // the other tensors of this launch have more slots
    for (int i = threadIdx.y; i < TILE; i += blockDim.y) {
        int slot = first_slot + i, column = first_column + threadIdx.x;
        real value = 0;
        if (slot < slots && column < width) {
            long long row = (long long)sequence * slots + slot;
            if (row_of_slot) row = row_of_slot[row];
            if (row < count) value = load(rows, row * stride + head * width + column) * (real)scale;
            if (straight) store(straight, ((long long)blockIdx.x * slots + slot) * width + column, value);
        }
        tile[i][threadIdx.x] = value;
    }
    __syncthreads();
    if (!turned) return;
    for (int i = threadIdx.y; i < TILE; i += blockDim.y) {
        int slot = first_slot + threadIdx.x, column = first_column + i;
        if (slot < slots && column < width)
            store(turned, ((long long)blockIdx.x * width + column) * slots + slot, tile[threadIdx.x][i]);
    }
}

// What `softmax(q @ k.T) @ v` multiplies: blockIdx.z = 0 queries (scaled), 1 keys turned over, 2 values or null.
extern "C" __global__ void split_heads_forward(
    const stored* queries, long long query_stride, const int* query_row_of_slot, int query_count, int query_slots,
    const stored* keys, long long key_stride, const stored* values, long long value_stride,
    const int* key_row_of_slot, int key_count, int key_slots, int attention_heads, int width, double scale,
    stored* q, stored* k_turned, stored* v) {
    if (blockIdx.z == 0)
        split_heads(queries, query_stride, query_row_of_slot, query_count, attention_heads, query_slots, width, scale, q, 0);
    else if (blockIdx.z == 1)
        split_heads(keys, key_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, 0, k_turned);
    else
        split_heads(values, value_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, v, 0);
}

// What the backward pass multiplies: blockIdx.z = 0 dcontext both ways, 1 queries turned over, 2 keys, 3 values
// turned over.
extern "C" __global__ void split_heads_backward(
    const stored* dcontext, long long dcontext_stride, const stored* queries, long long query_stride,
    const int* query_row_of_slot, int query_count, int query_slots, const stored* keys, long long key_stride,
    const stored* values, long long value_stride, const int* key_row_of_slot, int key_count, int key_slots,
    int attention_heads, int width, stored* dc, stored* dc_turned, stored* q_turned, stored* k, stored* v_turned) {
    if (blockIdx.z == 0)
        split_heads(dcontext, dcontext_stride, query_row_of_slot, query_count, attention_heads, query_slots, width, 1, dc,
                    dc_turned);
    else if (blockIdx.z == 1)
        split_heads(queries, query_stride, query_row_of_slot, query_count, attention_heads, query_slots, width, 1, 0, q_turned);
    else if (blockIdx.z == 2)
        split_heads(keys, key_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, k, 0);
    else
        split_heads(values, value_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, 0, v_turned);
}

// The inverse: one head of one sequence, as (slots, width) or turned over as (width, slots), to its place in the rows.
__device__ void merge_heads(const stored* slots_of_heads, bool turned, const int* row_of_slot, int count, int attention_heads,
                            int slots, int width, stored* rows, long long stride) {
    real(*tile)[TILE + 1] = (real(*)[TILE + 1])shared_memory;
    int tiles = (width + TILE - 1) / TILE;
    int first_slot = blockIdx.y / tiles * TILE, first_column = blockIdx.y % tiles * TILE;
    int sequence = blockIdx.x / attention_heads, head = blockIdx.x % attention_heads;
    if (first_slot >= slots) return;
    if (turned) {
        for (int i = threadIdx.y; i < TILE; i += blockDim.y) {
            int slot = first_slot + threadIdx.x, column = first_column + i;
            if (slot < slots && column < width)
                tile[threadIdx.x][i] = load(slots_of_heads, ((long long)blockIdx.x * width + column) * slots + slot);
        }
        __syncthreads();
    }
    for (int i = threadIdx.y; i < TILE; i += blockDim.y) {
        int slot = first_slot + i, column = first_column + threadIdx.x;
        if (slot >= slots || column >= width) continue;
        long long row = (long long)sequence * slots + slot;
        if (row_of_slot) row = row_of_slot[row];
        if (row >= count) continue;  // an empty slot
        real value = turned ? tile[i][threadIdx.x]
                            : load(slots_of_heads, ((long long)blockIdx.x * slots + slot) * width + column);
        store(rows, row * stride + head * width + column, value);
    }
}

extern "C" __global__ void merge_heads_forward(const stored* context_of_heads, const int* row_of_slot, int count,
                                               int attention_heads, int slots, int width, stored* context) {
    merge_heads(context_of_heads, false, row_of_slot, count, attention_heads, slots, width, context, (long long)attention_heads * width);
}

// blockIdx.z = 0 dqueries, 1 dkeys, 2 dvalues, the last two turned over.
extern "C" __global__ void merge_heads_backward(
    const stored* dq, const stored* dk_turned, const stored* dv_turned, const int* query_row_of_slot, int query_count,
    int query_slots, const int* key_row_of_slot, int key_count, int key_slots, int attention_heads, int width,
    stored* dqueries, long long dquery_stride, stored* dkeys, long long dkey_stride, stored* dvalues,
    long long dvalue_stride) {
    if (blockIdx.z == 0)
        merge_heads(dq, false, query_row_of_slot, query_count, attention_heads, query_slots, width, dqueries, dquery_stride);
    else if (blockIdx.z == 1)
        merge_heads(dk_turned, true, key_row_of_slot, key_count, attention_heads, key_slots, width, dkeys, dkey_stride);
    else
        merge_heads(dv_turned, true, key_row_of_slot, key_count, attention_heads, key_slots, width, dvalues, dvalue_stride);
}

// The random word of a row of attention weights: of its query's number and its head. Rows are (sequence, head, slot).
__device__ unsigned attention_row_word(long long row, const unsigned* row_numbers, unsigned key_low,
                                       const int* query_row_of_slot, int query_count, int attention_heads, int slots) {
    long long sequence = row / slots / attention_heads, query = sequence * slots + row % slots;
    unsigned head = row / slots % attention_heads;
    if (query_row_of_slot) query = query_row_of_slot[query];
    unsigned number = query < query_count ? row_numbers[query] : 0;
    return row_word(number * attention_heads + head, key_low);
}

// weights = stable_softmax(clip(scores) + mask), a warp per row, in place of the scores; and with dropout what is
// left of them. mask: (batch, columns), added, or null.
extern "C" __global__ void attention_softmax_forward(
    stored* scores, const stored* mask, double finite, DROPOUT, const int* query_row_of_slot, int query_count,
    int batch, int attention_heads, int slots, int columns, stored* dropped) {
    long long row = row_of_warp();
    if (row >= (long long)batch * attention_heads * slots) return;
    int lane = lane_of_warp();
    real bound = (real)finite, largest = -bound, total = 0;
    stored* weights = scores + row * columns;
    if (mask) mask += row / slots / attention_heads * columns;
    for (int column = lane; column < columns; column += WARP) {
        real value = load(weights, column);
        if (mask) value = (value < -bound ? -bound : value > bound ? bound : value) + load(mask, column);
        value = value < -bound ? -bound : value > bound ? bound : value;
        store(weights, column, value);
        if (value > largest) largest = value;
    }
    largest = warp_max(largest);
    for (int column = lane; column < columns; column += WARP) total += exp(load(weights, column) - largest);
    total = warp_sum(total);
    real share = largest == -bound ? (real)0 : 1 / total;  // a fully masked row attends to nothing
    unsigned word = 0;
    if (row_numbers)
        word = attention_row_word(row, row_numbers, key_low, query_row_of_slot, query_count, attention_heads, slots);
    for (int column = lane; column < columns; column += WARP) {
        real weight = exp(load(weights, column) - largest) * share;
        store(weights, column, weight);
        if (row_numbers)
            store(dropped, row * columns + column,
                  kept(word, column, key_high, threshold) ? weight * (real)factor : (real)0);
    }
}

// dscores = (dweights * mask, less its weighted sum) * weights * scale, a warp per row, in place of the gradient of
// the dropped-out weights; and those weights once more, for the gradient of the values.
extern "C" __global__ void attention_softmax_backward(
    stored* dscores, const stored* weights, double scale, DROPOUT, const int* query_row_of_slot, int query_count,
    int batch, int attention_heads, int slots, int columns, stored* dropped) {
    long long row = row_of_warp();
    if (row >= (long long)batch * attention_heads * slots) return;
    int lane = lane_of_warp();
    unsigned word = 0;
    if (row_numbers)
        word = attention_row_word(row, row_numbers, key_low, query_row_of_slot, query_count, attention_heads, slots);
    real along = 0;
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        real weight = load(weights, i), gradient = load(dscores, i);
        if (row_numbers) {
            bool keep = kept(word, column, key_high, threshold);
            gradient = keep ? gradient * (real)factor : (real)0;
            store(dropped, i, keep ? weight * (real)factor : (real)0);
        } else {
            store(dropped, i, weight);
        }
        along += gradient * weight;
        store(dscores, i, gradient);
    }
    along = warp_sum(along);
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        store(dscores, i, load(weights, i) * (load(dscores, i) - along) * (real)scale);
    }
}
