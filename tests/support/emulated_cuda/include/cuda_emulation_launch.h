// The entry points of an emulated module; included after the kernels and their table `emulated_kernels`.
#pragma once

static const emulation::Kernel* find_kernel(const char* name) {
    for (const emulation::Kernel& kernel : emulated_kernels)
        if (!std::strcmp(kernel.name, name)) return &kernel;
    return nullptr;
}

// The types of a kernel's parameters, a letter each; null if there is no such kernel.
extern "C" __attribute__((visibility("default"))) const char* emulated_parameters(const char* name) {
    const emulation::Kernel* kernel = find_kernel(name);
    return kernel ? kernel->parameters : nullptr;
}

// Runs a kernel over all blocks of a grid. order: 0 first thread first, 1 last first, 2 mixed. Null, or an error.
extern "C" __attribute__((visibility("default"))) const char* emulated_launch(
    const char* name, const unsigned* grid, const unsigned* block, void** values, size_t shared_bytes, int order) {
    using namespace emulation;
    run_kernel = find_kernel(name)->run;
    arguments = values;
    gridDim = dim3{grid[0], grid[1], grid[2]};
    blockDim = dim3{block[0], block[1], block[2]};
    number_of_threads = block[0] * block[1] * block[2];
    unsigned char* shared = (unsigned char*)shared_memory;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
        return fail("a grid of %u x %u x %u blocks is invalid", grid[0], grid[1], grid[2]), message;
    if (!number_of_threads || number_of_threads > MOST_THREADS)
        return fail("a block of %u threads is invalid", number_of_threads), message;
    if (shared_bytes > MOST_SHARED) return fail("%zu bytes of shared memory are too many", shared_bytes), message;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = uint3{place(x, grid[0], order & 1), y, z};
                std::memset(shared, POISON, shared_bytes + CANARY);
                if (!run_block(order)) {
                    number_free = number_made = 0;  // the fibres were left in the middle of their work
                    return message;
                }
                for (size_t i = shared_bytes; i < shared_bytes + CANARY; i++)
                    if (shared[i] != POISON)
                        return fail("byte %zu of shared memory was written, %zu were asked for", i, shared_bytes), message;
            }
    return nullptr;
}
