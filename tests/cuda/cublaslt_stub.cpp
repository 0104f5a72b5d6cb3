// A stand-in for cuBLASLt that multiplies in host memory, for tests of programs on a machine without a GPU.
//
// It has the calls that graphc makes, and takes nothing for granted: what it is handed must be alive and of the right
// kind, each attribute known and of the right size, what has no safe default set, shapes and types in agreement,
// addresses aligned as was promised when the algorithm was asked for, and the algorithm be one of this very product.
// What does not hold is a fault: a line of text for the test, and an error status for the caller. A product is not made
// when it is called: the test gets it (`stub_on_call`) and makes it when its stream comes to that.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

enum Status { OK = 0, INVALID = 7, INTERNAL = 14, UNSUPPORTED = 15 };
enum Kind { HANDLE, PRODUCT, LAYOUT, PREFERENCE };
const char *const KINDS[] = {"handle", "product", "layout", "preference"};

std::string faults;

int fault(const std::string &what) {
    faults += what + "\n";
    return INVALID;
}

struct Attribute {
    const char *name;
    size_t size;
};
// By kind: what can be set, with the sizes that the documentation gives.
const std::map<int, Attribute> ATTRIBUTES[] = {
    {},
    {{3, {"TRANSA", 4}}, {4, {"TRANSB", 4}}, {7, {"EPILOGUE", 4}}, {8, {"BIAS_POINTER", 8}}},
    {{5, {"BATCH_COUNT", 4}}, {6, {"STRIDED_BATCH_OFFSET", 8}}},
    {{1, {"MAX_WORKSPACE_BYTES", 8}}, {5, {"MIN_ALIGNMENT_A_BYTES", 4}}, {6, {"MIN_ALIGNMENT_B_BYTES", 4}},
     {7, {"MIN_ALIGNMENT_C_BYTES", 4}}, {8, {"MIN_ALIGNMENT_D_BYTES", 4}}},
};

struct Thing {
    Kind kind;
    std::map<int, int64_t> set;
    int compute = 0, scale = 0;         // of a product
    int type = 0;                       // this and the rest: of a layout
    int64_t rows = 0, columns = 0, ld = 0;

    int64_t get(int attribute, int64_t otherwise) const {
        auto found = set.find(attribute);
        return found == set.end() ? otherwise : found->second;
    }
    int64_t batch() const { return get(5, 1); }
    int64_t step() const { return get(6, 0); }
};

std::map<const void *, std::unique_ptr<Thing>> alive;

Thing *look(const void *address, Kind kind) {
    auto found = alive.find(address);
    if (found == alive.end() || found->second->kind != kind) {
        fault(std::string("no ") + KINDS[kind] + ", or none any more");
        return nullptr;
    }
    return found->second.get();
}

int made(void **out, Thing &&thing) {
    auto owned = std::make_unique<Thing>(std::move(thing));
    *out = owned.get();
    alive[*out] = std::move(owned);
    return OK;
}

int destroyed(void *address, Kind kind) {
    if (!look(address, kind)) return INVALID;
    alive.erase(address);
    return OK;
}

int set(void *address, Kind kind, int attribute, const void *value, size_t size) {
    Thing *thing = look(address, kind);
    if (!thing) return INVALID;
    auto known = ATTRIBUTES[kind].find(attribute);
    if (known == ATTRIBUTES[kind].end()) return fault("attribute " + std::to_string(attribute) + " is not known");
    if (known->second.size != size) return fault(std::string(known->second.name) + " has another size");
    int32_t narrow;
    int64_t wide;
    memcpy(size == 4 ? (void *)&narrow : (void *)&wide, value, size);
    thing->set[attribute] = size == 4 ? narrow : wide;
    return OK;
}

// Types -------------------------------------------------------------------------------------------------------------

enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };

size_t width(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

double read(int type, const char *at) {
    if (type == F64) return *(const double *)at;
    if (type == F32) return *(const float *)at;
    if (type == F16) return *(const _Float16 *)at;
    uint32_t bits = (uint32_t) * (const uint16_t *)at << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void write(int type, char *at, double value) {
    if (type == F64) *(double *)at = value;
    else if (type == F32) *(float *)at = (float)value;
    else if (type == F16) *(_Float16 *)at = (_Float16)(float)value;
    else {
        float single = (float)value;
        uint32_t bits;
        memcpy(&bits, &single, 4);
        *(uint16_t *)at = std::isnan(single) ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

// Products ----------------------------------------------------------------------------------------------------------

struct Algorithm {  // what is in the 64 bytes
    char magic[8];
    uint64_t product, workspace;
    int32_t number, align[4];
};
static_assert(sizeof(Algorithm) <= 64);

struct Found {
    unsigned char algorithm[64];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Found) == 96);

uint64_t mixed(uint64_t h, uint64_t x) { return (h ^ x) * 0x100000001b3; }

/// A number for what is multiplied, without addresses.
uint64_t identity(const Thing &what, const Thing *const (&layouts)[4]) {
    uint64_t h = mixed(mixed(0xcbf29ce484222325, what.compute), what.scale);
    for (auto [attribute, value] : what.set)
        if (attribute != 8) h = mixed(mixed(h, attribute), value);
    for (auto layout : layouts)
        for (int64_t n : {(int64_t)layout->type, layout->rows, layout->columns, layout->ld, layout->batch(), layout->step()})
            h = mixed(h, n);
    return h;
}

/// Whether the product makes sense; OK, INVALID with a fault, or UNSUPPORTED.
int checked(const Thing &what, const Thing *const (&layouts)[4]) {
    for (auto &[attribute, known] : ATTRIBUTES[PRODUCT])
        if (attribute != 8 && !what.set.count(attribute)) return fault(std::string(known.name) + " was not set");
    const Thing &a = *layouts[0], &b = *layouts[1], &c = *layouts[2], &d = *layouts[3];
    for (auto layout : layouts) {
        if (layout->ld < layout->rows) return fault("a leading dimension is less than the rows");
        if (layout->batch() != d.batch()) return fault("batches of different sizes");
        if (layout->batch() > 1 && !layout->set.count(6)) return fault("STRIDED_BATCH_OFFSET was not set");
    }
    int turn_a = what.get(3, 0), turn_b = what.get(4, 0), epilogue = what.get(7, 0);
    int64_t inner_a = turn_a ? a.rows : a.columns, inner_b = turn_b ? b.columns : b.rows;
    if ((turn_a ? a.columns : a.rows) != d.rows || (turn_b ? b.rows : b.columns) != d.columns || inner_a != inner_b)
        return fault("shapes that do not fit");
    if (c.rows != d.rows || c.columns != d.columns || c.type != d.type) return fault("c is not like d");
    if (epilogue != 1 && (epilogue & ~(2 | 4 | 32))) return fault("an epilogue that is not known here");
    if (epilogue == 0 || ((epilogue & 2) && (epilogue & 32))) return fault("an epilogue that there is not");
    if ((epilogue & 4) && !what.set.count(8)) return fault("BIAS_POINTER was not set");
    bool doubles = what.compute == 70 && what.scale == F64 && a.type == F64 && d.type == F64;
    bool singles = what.compute == 68 && what.scale == F32 && a.type != F64 && (d.type == a.type || d.type == F32);
    return a.type == b.type && (singles || doubles) ? OK : UNSUPPORTED;
}

struct Call {
    Thing what, layouts[4];
    const char *in[4];  // a, b, c, the bias
    char *out;
    double alpha, beta;
    uint64_t workspace, workspace_bytes;
    void *stream;
};
std::vector<std::unique_ptr<Call>> calls;  // kept: a graph may run them again
int (*on_call)(int64_t number, void *stream) = nullptr;

bool aligned(const void *address, int64_t to) { return to > 0 && (uintptr_t)address % to == 0; }

}  // namespace

extern "C" {

// What the test asks -------------------------------------------------------------------------------------------------

const char *stub_faults() { return faults.c_str(); }
void stub_forget() { faults.clear(); }
int64_t stub_alive() { return (int64_t)alive.size(); }
void stub_on_call(int (*callback)(int64_t, void *)) { on_call = callback; }

/// What a call touches: for a, b, c, d, the bias and the workspace the address, bytes of a column, bytes from column to
/// column, columns, bytes from matrix to matrix, matrices. Zeros where there is none.
void stub_regions(int64_t number, int64_t out[6][6]) {
    const Call &call = *calls[number];
    memset(out, 0, 36 * sizeof(int64_t));
    for (int i = 0; i < 4; i++) {
        const Thing &m = call.layouts[i];
        const char *at = i == 3 ? call.out : call.in[i];
        if (i == 2 && call.beta == 0) continue;
        int64_t w = (int64_t)width(m.type), row[6] = {(int64_t)at, m.rows * w, m.ld * w, m.columns, m.step() * w, m.batch()};
        memcpy(out[i], row, sizeof row);
    }
    if (call.what.get(7, 1) & 4) {
        int64_t row[6] = {(int64_t)call.in[3], call.layouts[3].rows * (int64_t)width(call.layouts[3].type), 0, 1, 0, 1};
        memcpy(out[4], row, sizeof row);
    }
    if (call.workspace_bytes) {
        int64_t row[6] = {(int64_t)call.workspace, (int64_t)call.workspace_bytes, 0, 1, 0, 1};
        memcpy(out[5], row, sizeof row);
    }
}

void stub_run(int64_t number) {
    const Call &call = *calls[number];
    const Thing &a = call.layouts[0], &b = call.layouts[1], &c = call.layouts[2], &d = call.layouts[3];
    bool turn_a = call.what.get(3, 0), turn_b = call.what.get(4, 0);
    int epilogue = (int)call.what.get(7, 1);
    auto at = [](const Thing &m, const char *base, int64_t n, int64_t i, int64_t j) {
        return base + (n * m.step() + j * m.ld + i) * (int64_t)width(m.type);
    };
    memset((void *)call.workspace, 0xA5, call.workspace_bytes);
    for (int64_t n = 0; n < d.batch(); n++)
        for (int64_t j = 0; j < d.columns; j++)
            for (int64_t i = 0; i < d.rows; i++) {
                double sum = 0;
                for (int64_t k = 0; k < (turn_a ? a.rows : a.columns); k++) {
                    const char *left = turn_a ? at(a, call.in[0], n, k, i) : at(a, call.in[0], n, i, k);
                    const char *right = turn_b ? at(b, call.in[1], n, j, k) : at(b, call.in[1], n, k, j);
                    sum += read(a.type, left) * read(b.type, right);
                }
                sum *= call.alpha;
                if (call.beta != 0) sum += call.beta * read(c.type, at(c, call.in[2], n, i, j));
                if (epilogue & 4) sum += read(d.type, call.in[3] + i * (int64_t)width(d.type));
                if (epilogue & 2) sum = sum > 0 ? sum : 0;
                if (epilogue & 32) sum = 0.5 * sum * (1 + std::tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
                write(d.type, (char *)at(d, call.out, n, i, j), sum);
            }
}

// What graphc calls --------------------------------------------------------------------------------------------------

size_t cublasLtGetVersion() { return 130100; }
int cublasLtCreate(void **out) { return made(out, Thing{HANDLE, {}}); }
int cublasLtDestroy(void *it) { return destroyed(it, HANDLE); }

int cublasLtMatmulDescCreate(void **out, int compute, int scale) {
    Thing thing{PRODUCT, {}};
    thing.compute = compute, thing.scale = scale;
    return made(out, std::move(thing));
}
int cublasLtMatmulDescDestroy(void *it) { return destroyed(it, PRODUCT); }
int cublasLtMatmulDescSetAttribute(void *it, int attribute, const void *value, size_t size) {
    return set(it, PRODUCT, attribute, value, size);
}

int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    if (type != F32 && type != F64 && type != F16 && type != BF16) return fault("a type that is not known here");
    if (!rows || !columns || ld < 1) return fault("an empty matrix");
    Thing thing{LAYOUT, {}};
    thing.type = type, thing.rows = (int64_t)rows, thing.columns = (int64_t)columns, thing.ld = ld;
    return made(out, std::move(thing));
}
int cublasLtMatrixLayoutDestroy(void *it) { return destroyed(it, LAYOUT); }
int cublasLtMatrixLayoutSetAttribute(void *it, int attribute, const void *value, size_t size) {
    return set(it, LAYOUT, attribute, value, size);
}

int cublasLtMatmulPreferenceCreate(void **out) { return made(out, Thing{PREFERENCE, {}}); }
int cublasLtMatmulPreferenceDestroy(void *it) { return destroyed(it, PREFERENCE); }
int cublasLtMatmulPreferenceSetAttribute(void *it, int attribute, const void *value, size_t size) {
    return set(it, PREFERENCE, attribute, value, size);
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *what, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, Found *out, int *count) {
    const Thing *layouts[4] = {look(a, LAYOUT), look(b, LAYOUT), look(c, LAYOUT), look(d, LAYOUT)};
    Thing *product = look(what, PRODUCT), *wishes = look(preference, PREFERENCE);
    if (!look(handle, HANDLE) || !product || !wishes || !layouts[0] || !layouts[1] || !layouts[2] || !layouts[3])
        return INVALID;
    *count = 0;
    if (int status = checked(*product, layouts)) return status;
    if (wanted < 1) return fault("none asked for");
    for (uint64_t workspace : {(uint64_t)1024, (uint64_t)0, (uint64_t)1 << 20}) {
        if (*count == wanted || workspace > (uint64_t)wishes->get(1, 0)) continue;
        Algorithm algorithm{"stub", identity(*product, layouts), workspace, *count, {}};
        for (int i = 0; i < 4; i++) algorithm.align[i] = (int)wishes->get(5 + i, 256);
        Found &found = out[(*count)++];
        memset(&found, 0, sizeof found);
        memcpy(found.algorithm, &algorithm, sizeof algorithm);
        found.workspace = workspace;
    }
    return *count ? OK : UNSUPPORTED;
}

int cublasLtMatmulAlgoCheck(void *handle, void *what, void *a, void *b, void *c, void *d, const void *bytes, Found *out) {
    const Thing *layouts[4] = {look(a, LAYOUT), look(b, LAYOUT), look(c, LAYOUT), look(d, LAYOUT)};
    Thing *product = look(what, PRODUCT);
    if (!look(handle, HANDLE) || !product || !layouts[0] || !layouts[1] || !layouts[2] || !layouts[3]) return INVALID;
    Algorithm algorithm;
    memcpy(&algorithm, bytes, sizeof algorithm);
    if (int status = checked(*product, layouts)) return status;
    if (strcmp(algorithm.magic, "stub") || algorithm.product != identity(*product, layouts)) return UNSUPPORTED;
    memset(out, 0, sizeof *out);
    out->workspace = algorithm.workspace;
    return OK;
}

int cublasLtMatmul(void *handle, void *what, const void *alpha, const void *a, void *a_layout, const void *b,
                   void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                   const void *bytes, void *workspace, size_t workspace_bytes, void *stream) {
    const Thing *layouts[4] = {look(a_layout, LAYOUT), look(b_layout, LAYOUT), look(c_layout, LAYOUT), look(d_layout, LAYOUT)};
    Thing *product = look(what, PRODUCT);
    if (!look(handle, HANDLE) || !product || !layouts[0] || !layouts[1] || !layouts[2] || !layouts[3]) return INVALID;
    if (int status = checked(*product, layouts)) return status;
    Algorithm algorithm;
    memcpy(&algorithm, bytes, sizeof algorithm);
    if (strcmp(algorithm.magic, "stub") || algorithm.product != identity(*product, layouts))
        return fault("the algorithm of another product");
    if (workspace_bytes < algorithm.workspace) return fault("a workspace that is too small");
    if (workspace_bytes && (!workspace || !aligned(workspace, 256))) return fault("a workspace that is not aligned");
    const void *addresses[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (!addresses[i] || !aligned(addresses[i], algorithm.align[i]))
            return fault(std::string("address of ") + "abcd"[i] + " is not aligned as promised");
    if (c == d && identity(*product, layouts) && layouts[2]->ld != layouts[3]->ld) return fault("c in place, but not like d");
    int64_t bias = product->get(8, 0);
    if ((product->get(7, 1) & 4) && (bias < 1 << 12 || bias % 16)) return fault("a bias that is not in memory");
    if (!alpha || !beta || !stream) return fault("no factor, or no stream");
    bool doubles = product->scale == F64;
    auto call = std::make_unique<Call>();
    call->what = *product;
    for (int i = 0; i < 4; i++) call->layouts[i] = *layouts[i];
    call->in[0] = (const char *)a, call->in[1] = (const char *)b, call->in[2] = (const char *)c, call->in[3] = (const char *)bias;
    call->out = (char *)d;
    call->alpha = doubles ? *(const double *)alpha : *(const float *)alpha;
    call->beta = doubles ? *(const double *)beta : *(const float *)beta;
    call->workspace = (uint64_t)workspace, call->workspace_bytes = workspace_bytes, call->stream = stream;
    calls.push_back(std::move(call));
    return on_call && on_call((int64_t)calls.size() - 1, stream) == 0 ? OK : fault("it could not be put on its stream");
}
}
