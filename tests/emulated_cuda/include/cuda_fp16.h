// The part of CUDA's cuda_fp16.h that the kernels use, in integer arithmetic: IEEE 754 binary16, to nearest even.
#pragma once

#include <cstring>

struct __half {
    unsigned short bits;
};

inline float emulated_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned emulated_as_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __half2float(__half half) {
    unsigned sign = (half.bits & 0x8000u) << 16, exponent = half.bits >> 10 & 31, fraction = half.bits & 0x3ffu;
    if (exponent == 31) return emulated_as_float(sign | 0x7f800000u | fraction << 13);  // infinity, NaN
    if (exponent > 0) return emulated_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction / 16777216.0f;  // zero and subnormal numbers are multiples of 2^-24
    return sign ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
    unsigned bits = emulated_as_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return __half{(unsigned short)(sign | 0x7e00u)};   // NaN
    if (magnitude >= 0x47800000u) return __half{(unsigned short)(sign | 0x7c00u)};  // 65536 and more: infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: a sum with 0.5, whose last place is 2^-24, rounds
        unsigned rounded = emulated_as_bits(emulated_as_float(magnitude) + 0.5f) - 0x3f000000u;
        return __half{(unsigned short)(sign | rounded)};
    }
    unsigned rebased = magnitude - (112u << 23);
    return __half{(unsigned short)(sign | (rebased + 0xfffu + (rebased >> 13 & 1)) >> 13)};
}
