// 16-bit floats by their bits, written apart from the compiler's own conversions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace simt {

inline float f32_from_bf16_bits(uint16_t a) { return std::bit_cast<float>(static_cast<uint32_t>(a) << 16); }

inline uint16_t bf16_bits_from_f32(float a) {
    uint32_t bits = std::bit_cast<uint32_t>(a);
    return std::isnan(a) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // ties to even
}

inline float f32_from_f16_bits(uint16_t a) {
    int exponent = a >> 10 & 31, fraction = a & 0x3ff;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                 : exponent     ? std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25)
                                : std::ldexp(static_cast<float>(fraction), -24);
    return a >> 15 ? -size : size;
}

inline uint16_t f16_bits_from_f32(float a) {
    uint16_t sign = std::signbit(a) << 15;
    float size = std::fabs(a);
    if (std::isnan(a)) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;  // half way from the largest number to the next power of two
    int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);  // below lie the subnormal numbers, in steps of 2^-24
    int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return sign | (((exponent + 14) << 10) + steps);  // a carry out of the fraction is one into the exponent
}

}  // namespace simt
