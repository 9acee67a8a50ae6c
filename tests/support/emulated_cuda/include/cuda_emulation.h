// CUDA's execution model on one CPU thread: lets the C++ compiler run backends/*.cu as they stand.
//
// Every thread of a block is a fibre with its own stack. A fibre runs until it meets a barrier or a shuffle, or
// ends; then the next one runs, warp by warp, in an order that the launch chooses. So a missing barrier is not a
// race that happens or not: whoever reads too early reads the poison that shared memory is filled with, and
// whoever writes too early destroys what the others were to read. What CUDA leaves undefined is an error here:
// a barrier that not all threads of a block reach, a shuffle with a lane that does not take part, a block, grid or
// shared memory beyond the limits that hold for every GPU since compute capability 7.0.
#pragma once

#define CUDA_EMULATION

#include <csetjmp>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __restrict__

using std::erf;
using std::exp;
using std::log;
using std::sqrt;
using std::tanh;

struct uint3 {
    unsigned x, y, z;
};
typedef uint3 dim3;

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace emulation {

const unsigned MOST_THREADS = 1024, LANES = 32;
const size_t STACK = 64 << 10, MOST_SHARED = 48 << 10, CANARY = 1 << 10;
const unsigned char POISON = 0xff;  // a NaN in every floating dtype

enum State { NEW, READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fibre {
    jmp_buf at;
    ucontext_t context;
    char* stack;
};

struct Thread {
    State state;
    int fibre, line;      // line: of the barrier it waits at
    unsigned mask, turn;  // of its shuffles
    unsigned long long posted[2];
};

static Fibre fibres[MOST_THREADS];
static int free_fibres[MOST_THREADS], number_free, number_made;
static Thread threads[MOST_THREADS];
static unsigned current, number_of_threads;
static jmp_buf scheduler;
static void (*run_kernel)(void**);
static void** arguments;
static char message[300];

inline bool fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return false;
}

__attribute__((noinline)) static void pause() {
    if (_setjmp(fibres[threads[current].fibre].at) == 0) _longjmp(scheduler, 1);
}

static void become(unsigned number, int fibre) {
    threads[number].fibre = fibre;
    threads[number].state = READY;
    current = number;
    threadIdx.x = number % blockDim.x;
    threadIdx.y = number / blockDim.x % blockDim.y;
    threadIdx.z = number / blockDim.x / blockDim.y;
}

inline unsigned place(unsigned i, unsigned count, int order) {  // the i-th to run of `count`
    return order == 0 ? i : order == 1 ? count - 1 - i : (i * 7 + 5) % count;
}

// The warp that runs: its first thread, how many it has, in which order, and how far the scheduler has come.
static unsigned warp_first, warp_count, warp_at;
static int warp_order;

// A fibre that has done with a thread goes on with the next new one of the warp, without a detour.
static bool next_new_thread() {
    if (warp_at + 1 >= warp_count) return false;
    unsigned number = warp_first + place(warp_at + 1, warp_count, warp_order);
    if (threads[number].state != NEW) return false;
    warp_at++;
    become(number, threads[current].fibre);
    return true;
}

static void fibre_main() {
    if (_setjmp(fibres[number_made].at) == 0) _longjmp(scheduler, 1);
    for (;;) {
        do {
            run_kernel(arguments);
            threads[current].state = DONE;
        } while (next_new_thread());
        pause();
    }
}

__attribute__((noinline)) static void make_fibre() {
    Fibre& fibre = fibres[number_made];
    getcontext(&fibre.context);
    if (!fibre.stack) fibre.stack = (char*)malloc(STACK);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, fibre_main, 0);
    if (_setjmp(scheduler) == 0) setcontext(&fibre.context);
    free_fibres[number_free++] = number_made++;
}

__attribute__((noinline)) static void resume(unsigned number) {
    if (threads[number].state == NEW && number_free == 0) make_fibre();
    become(number, threads[number].state == NEW ? free_fibres[--number_free] : threads[number].fibre);
    if (_setjmp(scheduler) == 0) _longjmp(fibres[threads[current].fibre].at, 1);
    if (threads[current].state == DONE) free_fibres[number_free++] = threads[current].fibre;
}

static void barrier(int line) {
    threads[current].state = AT_BARRIER;
    threads[current].line = line;
    pause();
}

template <class T>
T exchange(unsigned mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    Thread& thread = threads[current];
    unsigned first = current / LANES * LANES, turn = thread.turn;
    thread.turn ^= 1;  // the next shuffle must not overwrite what slower lanes have yet to read
    thread.mask = mask;
    std::memcpy(&thread.posted[turn], &value, sizeof(T));
    thread.state = AT_SHUFFLE;
    pause();
    if (lane < LANES && first + lane < number_of_threads) std::memcpy(&value, &threads[first + lane].posted[turn], sizeof(T));
    return value;
}

// Every lane that a shuffle names takes part in it.
static bool shuffle_is_complete(unsigned first, unsigned last) {
    for (unsigned i = first; i < last; i++) {
        if (threads[i].state != AT_SHUFFLE) continue;
        for (unsigned lane = 0; lane < LANES; lane++) {
            if (!(threads[i].mask >> lane & 1)) continue;
            if (first + lane >= last || threads[first + lane].state != AT_SHUFFLE)
                return fail("thread %u shuffles with lane %u, which has ended or is elsewhere", i, lane);
        }
    }
    return true;
}

// Runs a warp until all of its threads have ended or wait for the whole block.
static bool run_warp(unsigned first, unsigned last, int order) {
    if (order == 2 && (last - first) % 7 == 0) order = 1;  // the step of `place` must be prime to the count
    warp_first = first, warp_count = last - first, warp_order = order;
    for (;;) {
        for (warp_at = 0; warp_at < warp_count; warp_at++) {
            unsigned number = first + place(warp_at, warp_count, order);
            if (threads[number].state == NEW || threads[number].state == READY) resume(number);
        }
        bool shuffling = false;
        for (unsigned i = first; i < last; i++) shuffling |= threads[i].state == AT_SHUFFLE;
        if (!shuffling) return true;
        if (!shuffle_is_complete(first, last)) return false;
        for (unsigned i = first; i < last; i++)
            if (threads[i].state == AT_SHUFFLE) threads[i].state = READY;
    }
}

static bool run_block(int order) {
    for (unsigned i = 0; i < number_of_threads; i++) threads[i] = Thread{NEW, 0, 0, 0, 0, {0, 0}};
    unsigned warps = (number_of_threads + LANES - 1) / LANES;
    for (;;) {
        for (unsigned w = 0; w < warps; w++) {
            unsigned first = place(w, warps, order == 2 ? 1 : order) * LANES;
            unsigned last = first + LANES < number_of_threads ? first + LANES : number_of_threads;
            if (!run_warp(first, last, order)) return false;
        }
        unsigned ended = 0;
        for (unsigned i = 0; i < number_of_threads; i++) ended += threads[i].state == DONE;
        if (ended == number_of_threads) return true;
        if (ended) return fail("%u of %u threads end while the others wait at __syncthreads", ended, number_of_threads);
        for (unsigned i = 0; i < number_of_threads; i++) {
            if (threads[i].line != threads[0].line)
                return fail("threads wait at different __syncthreads, in lines %d and %d", threads[0].line, threads[i].line);
            threads[i].state = READY;
        }
    }
}

// IEEE 754 binary16 in integer arithmetic, rounded to nearest even, as the instruction cvt.rn.f16.f32 does it.
inline float as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned as_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float half_to_float(unsigned short half) {
    unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
    if (exponent == 31) return as_float(sign | 0x7f800000u | fraction << 13);  // infinity, NaN
    if (exponent > 0) return as_float(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction / 16777216.0f;  // zero and subnormal numbers are multiples of 2^-24
    return sign ? -magnitude : magnitude;
}

inline unsigned short float_to_half(float value) {
    unsigned bits = as_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);   // NaN
    if (magnitude >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);  // 65536 and more: infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: a sum with 0.5, whose last place is 2^-24, rounds
        unsigned rounded = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
        return (unsigned short)(sign | rounded);
    }
    unsigned rebased = magnitude - (112u << 23);
    return (unsigned short)(sign | (rebased + 0xfffu + (rebased >> 13 & 1)) >> 13);
}

// Turns the addresses of the arguments into a call.
template <class... Parameters, size_t... I>
void call(void (*kernel)(Parameters...), void** values, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<Parameters>*)values[I]...);
}
template <class... Parameters>
void call(void (*kernel)(Parameters...), void** values) {
    call(kernel, values, std::index_sequence_for<Parameters...>{});
}

template <class T>
constexpr char letter() {  // as in the struct module; P for a pointer
    if (std::is_pointer<T>::value) return 'P';
    if (std::is_same<T, float>::value) return 'f';
    if (std::is_same<T, double>::value) return 'd';
    return sizeof(T) == 8 ? 'q' : std::is_signed<T>::value ? 'i' : 'I';
}
template <class... Parameters>
const char* letters(void (*)(Parameters...)) {
    static const char result[] = {letter<Parameters>()..., 0};
    return result;
}

struct Kernel {
    const char* name;
    const char* parameters;
    void (*run)(void**);
};

}  // namespace emulation

double shared_memory[(emulation::MOST_SHARED + emulation::CANARY) / sizeof(double)];

#define __syncthreads() emulation::barrier(__LINE__)
#define __syncwarp() emulation::exchange(0xffffffffu, 0, 0)
#define __threadfence() ((void)0)  // one CPU thread sees its own writes

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return emulation::exchange(mask, value, (emulation::current % emulation::LANES) ^ bits);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
    return emulation::exchange(mask, value, emulation::current % emulation::LANES + distance);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return emulation::exchange(mask, value, lane % emulation::LANES);
}
template <class T>
T atomicAdd(T* target, T value) {  // nothing comes between: fibres change places at barriers only
    T before = *target;
    *target = before + value;
    return before;
}

#define EMULATED_KERNEL(name) {#name, emulation::letters(name), [](void** values) { emulation::call(name, values); }},
