// The CUDA kernels of attention between its projections: split heads, softmax with mask and dropout, merge heads.
//
// This file is appended to kernels.cu, whose types and helpers it uses, before compilation. cuBLAS computes the matrix
// products between these kernels. The kernels write every operand in the orientation in which no product needs a copy:
// `q_turned` and the like are q transposed, (batch, attention_heads, width, slots). The names are those of
// docs/gradients.md, section "Attention".

// Copy one attention head of one sequence from rows (N, attention_heads * width) to slots
// (batch, attention_heads, slots, width) in `straight`, to the transpose (batch, attention_heads, width, slots) in
// `turned`, or to both; either may be null. blockIdx.x counts sequences and attention heads, blockIdx.y tiles.
// row_of_slot: (batch * slots,), N for an empty slot; or null where slot i holds row i.
__device__ void split_heads(const stored* rows, long long stride, const int* row_of_slot, int count,
                            int attention_heads, int slots, int width, double scale, stored* straight,
                            stored* turned) {
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

// Write the operands of the forward pass: blockIdx.z = 0 queries * score_scale, 1 keys transposed, 2 values or null.
extern "C" __global__ void split_heads_forward(
    const stored* queries, long long query_stride, const int* query_row_of_slot, int query_count, int query_slots,
    const stored* keys, long long key_stride, const stored* values, long long value_stride,
    const int* key_row_of_slot, int key_count, int key_slots, int attention_heads, int width, double score_scale,
    stored* q, stored* k_turned, stored* v) {
    if (blockIdx.z == 0)
        split_heads(queries, query_stride, query_row_of_slot, query_count, attention_heads, query_slots, width,
                    score_scale, q, 0);
    else if (blockIdx.z == 1)
        split_heads(keys, key_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, 0, k_turned);
    else
        split_heads(values, value_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, v, 0);
}

// Write the operands of the backward pass: blockIdx.z = 0 dcontext both straight and transposed, 1 queries transposed,
// 2 keys, 3 values transposed.
extern "C" __global__ void split_heads_backward(
    const stored* dcontext, long long dcontext_stride, const stored* queries, long long query_stride,
    const int* query_row_of_slot, int query_count, int query_slots, const stored* keys, long long key_stride,
    const stored* values, long long value_stride, const int* key_row_of_slot, int key_count, int key_slots,
    int attention_heads, int width, stored* dc, stored* dc_turned, stored* q_turned, stored* k, stored* v_turned) {
    if (blockIdx.z == 0)
        split_heads(dcontext, dcontext_stride, query_row_of_slot, query_count, attention_heads, query_slots, width, 1,
                    dc, dc_turned);
    else if (blockIdx.z == 1)
        split_heads(queries, query_stride, query_row_of_slot, query_count, attention_heads, query_slots, width, 1, 0,
                    q_turned);
    else if (blockIdx.z == 2)
        split_heads(keys, key_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, k, 0);
    else
        split_heads(values, value_stride, key_row_of_slot, key_count, attention_heads, key_slots, width, 1, 0,
                    v_turned);
}

// The inverse of split_heads: copy one attention head of one sequence, stored as (slots, width) or transposed as
// (width, slots), to its place in the rows.
__device__ void merge_heads(const stored* slots_of_heads, bool turned, const int* row_of_slot, int count,
                            int attention_heads, int slots, int width, stored* rows, long long stride) {
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

extern "C" __global__ void merge_heads_forward(const stored* c, const int* row_of_slot, int count, int attention_heads,
                                               int slots, int width, stored* context) {
    long long stride = (long long)attention_heads * width;
    merge_heads(c, false, row_of_slot, count, attention_heads, slots, width, context, stride);
}

// blockIdx.z = 0 dqueries, 1 dkeys, 2 dvalues; the last two come transposed.
extern "C" __global__ void merge_heads_backward(
    const stored* dq, const stored* dk_turned, const stored* dv_turned, const int* query_row_of_slot, int query_count,
    int query_slots, const int* key_row_of_slot, int key_count, int key_slots, int attention_heads, int width,
    stored* dqueries, long long dquery_stride, stored* dkeys, long long dkey_stride, stored* dvalues,
    long long dvalue_stride) {
    if (blockIdx.z == 0)
        merge_heads(dq, false, query_row_of_slot, query_count, attention_heads, query_slots, width, dqueries,
                    dquery_stride);
    else if (blockIdx.z == 1)
        merge_heads(dk_turned, true, key_row_of_slot, key_count, attention_heads, key_slots, width, dkeys, dkey_stride);
    else
        merge_heads(dv_turned, true, key_row_of_slot, key_count, attention_heads, key_slots, width, dvalues,
                    dvalue_stride);
}

// The word of a row of attention weights. The row's number is made of its query's number and its attention head. Rows
// are (sequence, attention head, slot).
__device__ unsigned attention_row_word(long long row, const unsigned* row_numbers, unsigned row_key,
                                       const int* query_row_of_slot, int query_count, int attention_heads, int slots) {
    long long sequence = row / slots / attention_heads, query = sequence * slots + row % slots;
    unsigned head = row / slots % attention_heads;
    if (query_row_of_slot) query = query_row_of_slot[query];
    unsigned number = query < query_count ? row_numbers[query] : 0;
    return counter_word(number * attention_heads + head, row_key);
}

// weights = stable_softmax(clip(scores) + mask), a warp per row, in place of the scores; and with dropout
// dropped_weights = weights * weights_dropout_mask. mask: (batch, columns), added to the scores, or null.
extern "C" __global__ void attention_softmax_forward(
    stored* scores, const stored* mask, double score_bound, DROPOUT, const int* query_row_of_slot, int query_count,
    int batch, int attention_heads, int slots, int columns, stored* dropped_weights) {
    long long row = row_of_warp();
    if (row >= (long long)batch * attention_heads * slots) return;
    int lane = lane_of_warp();
    real bound = (real)score_bound, maximum = -bound, exponential_sum = 0;
    stored* weights = scores + row * columns;  // scores until the last loop
    if (mask) mask += row / slots / attention_heads * columns;
    for (int column = lane; column < columns; column += WARP) {
        real score = load(weights, column);
        if (mask) score = clip(score, bound) + load(mask, column);
        score = clip(score, bound);
        store(weights, column, score);
        if (score > maximum) maximum = score;
    }
    maximum = warp_max(maximum);
    for (int column = lane; column < columns; column += WARP) exponential_sum += exp(load(weights, column) - maximum);
    exponential_sum = warp_sum(exponential_sum);
    real inverse_sum = maximum == -bound ? (real)0 : 1 / exponential_sum;  // a fully masked row attends to nothing
    unsigned row_word = 0;
    if (row_numbers)
        row_word =
            attention_row_word(row, row_numbers, row_key, query_row_of_slot, query_count, attention_heads, slots);
    for (int column = lane; column < columns; column += WARP) {
        real weight = exp(load(weights, column) - maximum) * inverse_sum;
        store(weights, column, weight);
        if (row_numbers)
            store(dropped_weights, row * columns + column,
                  kept(row_word, column, column_key, threshold) ? weight * (real)keep_scale : (real)0);
    }
}

// dqk = dscores * score_scale with dscores = weights * (dweights - dweights_weights_sum) and dweights = ddropped_weights
// * weights_dropout_mask, a warp per row. dqk comes as ddropped_weights and is overwritten. Writes dropped_weights once
// more, for dvalues.
extern "C" __global__ void attention_softmax_backward(
    stored* dqk, const stored* weights, double score_scale, DROPOUT, const int* query_row_of_slot, int query_count,
    int batch, int attention_heads, int slots, int columns, stored* dropped_weights) {
    long long row = row_of_warp();
    if (row >= (long long)batch * attention_heads * slots) return;
    int lane = lane_of_warp();
    unsigned row_word = 0;
    if (row_numbers)
        row_word =
            attention_row_word(row, row_numbers, row_key, query_row_of_slot, query_count, attention_heads, slots);
    real dweights_weights_sum = 0;
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        real weight = load(weights, i), dweight = load(dqk, i);
        // dropped_weights = weights * weights_dropout_mask
        if (row_numbers) {
            bool keep = kept(row_word, column, column_key, threshold);
            dweight = keep ? dweight * (real)keep_scale : (real)0;
            store(dropped_weights, i, keep ? weight * (real)keep_scale : (real)0);
        } else {
            store(dropped_weights, i, weight);
        }
        dweights_weights_sum += dweight * weight;
        store(dqk, i, dweight);
    }
    dweights_weights_sum = warp_sum(dweights_weights_sum);
    for (int column = lane; column < columns; column += WARP) {
        long long i = row * columns + column;
        // weights = softmax(scores), scores = qk * score_scale + mask
        store(dqk, i, load(weights, i) * (load(dqk, i) - dweights_weights_sum) * (real)score_scale);
    }
}
