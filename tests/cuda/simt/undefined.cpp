// What -fsanitize=undefined calls: each handler says what it found. The records are those of GCC's libubsan.
#include "executor.h"

namespace simt {

namespace {

struct Location {
    const char *file;
    uint32_t line, column;
};

struct Mismatch {
    Location at;
    const void *type;
    uint8_t log_alignment, kind;
};

[[noreturn]] void found(const Location &at, Fault fault, const char *what) {
    fail(fault, nullptr, "%s (%s)", what, text({at.file, static_cast<int>(at.line)}).c_str());
}

void mismatch(const Mismatch &record, uintptr_t address) {
    uintptr_t alignment = uintptr_t{1} << record.log_alignment;
    if (!address) found(record.at, Fault::bounds, "a null pointer is used");
    std::string what = "an address is no multiple of " + std::to_string(alignment);
    if (address % alignment) found(record.at, Fault::alignment, what.c_str());
    found(record.at, Fault::bounds, "an access past the end of its object");
}

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(const Mismatch *record, uintptr_t address) { mismatch(*record, address); }

// Each record begins with its location.
#define HANDLER(name, fault, what) \
    void __ubsan_handle_##name(const Location *at) { found(*at, Fault::fault, what); }
HANDLER(out_of_bounds, bounds, "an index is outside of its array")
HANDLER(pointer_overflow, bounds, "arithmetic on a pointer overflows")
HANDLER(add_overflow, undefined, "a signed sum overflows")
HANDLER(sub_overflow, undefined, "a signed difference overflows")
HANDLER(mul_overflow, undefined, "a signed product overflows")
HANDLER(negate_overflow, undefined, "a negation overflows")
HANDLER(divrem_overflow, undefined, "a division by zero, or one that overflows")
HANDLER(shift_out_of_bounds, undefined, "a shift by the width or more, or by a negative number")
HANDLER(load_invalid_value, undefined, "a bool is neither 0 nor 1")
HANDLER(float_cast_overflow, undefined, "a float does not fit into the integer that it is cast to")
HANDLER(builtin_unreachable, undefined, "code that must not be reached is reached")
HANDLER(missing_return, undefined, "a function ends without a value")
HANDLER(vla_bound_not_positive, undefined, "an array has no positive size")
HANDLER(nonnull_arg, undefined, "a null pointer where none may be")
HANDLER(invalid_builtin, undefined, "a count of leading or trailing zeros of 0")

}  // extern "C"

}  // namespace simt
