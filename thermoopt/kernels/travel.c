/* The forces of one step on sampled coordinates, added to the sums N and S of thermoopt/physics/travel.py.
 *
 * A layer's sample is `rows` stretches of `width` elements, `stride` elements apart, and lies in the flat
 * buffers from `at` on. With g the gradient (0 where it is not finite, or there is none) and eta the layer's rate,
 *
 *     S <- keep S + impulse eta g,        N <- keep N - work <eta g, theta - x0>
 *
 * in float32 element by element. The work of a part of a layer is added up in 16 float64 lanes, and the parts in
 * order: no result depends on the number of threads, nor on whether a step of native.c, whose chunks are such
 * parts, forms the sums on its way or a pass of its own does. Samples lie so far apart that a pass of its own waits
 * for memory; a step copies them just before it reads what lies around them, and works on the copies at the end of
 * a chunk. At 5 M parameters a pass of its own took half of a measured step's time. On the way it is 6 %: 2 for the
 * copies, 1 for arithmetic in cache, the rest x0 and S on their way through memory, 12 bytes a sampled element.
 * Working on each row where it is met took as long; asking for a row's memory ahead of the step's own way, 3 % longer.
 */
#include "travel.h"
#include "team.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#else
#define X86 0
#endif

#define EXPORT __attribute__((visibility("default")))

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { LANES = 16 };

static inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    uint32_t bits;
    float x;
    if (rest >= 0x7c00) /* infinite or NaN */
        bits = 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400)
        bits = (rest << 13) + ((127 - 15) << 23);
    else { /* subnormal: exact */
        x = (float)rest * 0x1p-24f;
        memcpy(&bits, &x, 4);
    }
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

static inline __attribute__((always_inline)) float number(const void *from, int64_t i, int dtype) {
    if (dtype == FLOAT32) return ((const float *)from)[i];
    const uint16_t h = ((const uint16_t *)from)[i];
    if (dtype == FLOAT16) return from_half(h);
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

typedef float four __attribute__((vector_size(16)));
typedef double four_wide __attribute__((vector_size(32)));

/* Add LANES floats. Left to itself gcc converts them one by one: forces of samples in cache took three times as long,
 * distance and impulse four times. */
static inline __attribute__((always_inline)) void add_wide(const float *restrict x, double *restrict lanes) {
    for (int j = 0; j < LANES; j += 4) {
        four narrow;
        four_wide sum;
        memcpy(&narrow, x + j, sizeof narrow);
        memcpy(&sum, lanes + j, sizeof sum);
        sum += __builtin_convertvector(narrow, four_wide);
        memcpy(lanes + j, &sum, sizeof sum);
    }
}

/* Up to LANES elements. */
static inline __attribute__((always_inline)) void elements(const float *restrict p, const float *restrict g,
                                                           const float *restrict x0, float *restrict s, int64_t n,
                                                           float keep, float weight, float rate,
                                                           double *restrict lanes) {
    float work[LANES];
    for (int64_t j = 0; j < n; j++) {
        uint32_t bits;
        float force;
        memcpy(&bits, g + j, 4);
        bits = (bits & 0x7f800000) == 0x7f800000 ? 0 : bits; /* infinite or NaN */
        memcpy(&force, &bits, 4);
        force *= rate;
        s[j] = s[j] * keep + force * weight;
        work[j] = (p[j] - x0[j]) * force;
    }
    if (n == LANES)
        add_wide(work, lanes);
    else
        for (int64_t j = 0; j < n; j++) lanes[j] += (double)work[j];
}

static inline __attribute__((always_inline)) void stands(const float *restrict p, const float *restrict x0,
                                                         const float *restrict s, int64_t n, double *restrict away,
                                                         double *restrict size) {
    float d2[LANES], own[LANES];
    for (int64_t j = 0; j < n; j++) {
        const float d = p[j] - x0[j];
        d2[j] = d * d;
        own[j] = s[j] < 0 ? -s[j] : s[j];
    }
    if (n == LANES) {
        add_wide(d2, away);
        add_wide(own, size);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        away[j] += (double)d2[j];
        size[j] += (double)own[j];
    }
}

static inline __attribute__((always_inline)) const float *numbers(const void *from, int64_t at, int64_t n, int dtype,
                                                                  float *into) {
    if (dtype == FLOAT32) return (const float *)from + at;
    for (int64_t j = 0; j < n; j++) into[j] = number(from, at + j, dtype);
    return into;
}

static inline __attribute__((always_inline)) double forces(const struct travel *k, const struct sample *x, float rate,
                                                           const float *scale, int dtype) {
    const float keep = (float)k->keep, weight = (float)k->weight;
    float own_p[LANES], own_g[LANES], own_x[LANES];
    double lanes[LANES] = {0}, sum = 0;
    for (int64_t j = 0; j < x->n; j += LANES) {
        const int64_t n = x->n - j < LANES ? x->n - j : LANES;
        const float *p = numbers(x->param, j, n, dtype, own_p), *g = numbers(x->grad, j, n, dtype, own_g);
        const float *x0 = numbers(k->start, x->flat + j, n, dtype, own_x);
        float *s = k->impulse + x->flat + j;
        if (scale) {
            for (int64_t l = 0; l < n; l++) own_g[l] = g[l] / *scale;
            g = own_g;
        }
        if (n == LANES) /* a loop of known length */
            elements(p, g, x0, s, LANES, keep, weight, rate, lanes);
        else
            elements(p, g, x0, s, n, keep, weight, rate, lanes);
    }
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

static inline __attribute__((always_inline)) double any(const struct travel *k, const struct sample *x, float rate,
                                                        const float *scale) {
    if (k->dtype == FLOAT32) return forces(k, x, rate, scale, FLOAT32);
    if (k->dtype == BFLOAT16) return forces(k, x, rate, scale, BFLOAT16);
    return forces(k, x, rate, scale, FLOAT16);
}

/* Squared displacement and absolute impulse of a part. */
static inline __attribute__((always_inline)) void standing(const struct travel *k, const struct sample *x, int dtype,
                                                           double *sums) {
    double away[LANES] = {0}, size[LANES] = {0};
    float own_p[LANES], own_x[LANES];
    for (int64_t j = 0; j < x->n; j += LANES) {
        const int64_t n = x->n - j < LANES ? x->n - j : LANES;
        const float *p = numbers(x->param, j, n, dtype, own_p);
        const float *x0 = numbers(k->start, x->flat + j, n, dtype, own_x), *s = k->impulse + x->flat + j;
        if (n == LANES)
            stands(p, x0, s, LANES, away, size);
        else
            stands(p, x0, s, n, away, size);
    }
    sums[DISTANCE2] = sums[IMPULSE] = 0;
    for (int l = 0; l < LANES; l++) {
        sums[DISTANCE2] += away[l];
        sums[IMPULSE] += size[l];
    }
}

#if X86 /* the same operations on longer vectors */
__attribute__((target("avx2"))) static double any_avx2(const struct travel *k, const struct sample *x, float rate,
                                                       const float *scale) {
    return any(k, x, rate, scale);
}

__attribute__((target("avx2"))) static void standing_avx2(const struct travel *k, const struct sample *x,
                                                          double *sums) {
    standing(k, x, k->dtype, sums);
}
#endif

double thermoopt_forces(const struct travel *k, const struct sample *x, float rate, const float *scale) {
#if X86
    if (__builtin_cpu_supports("avx2")) return any_avx2(k, x, rate, scale);
#endif
    return any(k, x, rate, scale);
}

void thermoopt_sample(struct sample *x, const struct travel *k, int64_t i, const void *param, const void *grad,
                      int64_t from, int64_t to) {
    const int64_t first = k->first[i], width = k->width[i], stride = k->stride[i], rows = k->rows[i];
    x->size = k->dtype == FLOAT32 ? 4 : 2;
    x->width = width;
    x->stride = stride;
    x->end = to - from;
    x->n = 0;
    x->next = NONE_LEFT;
    /* the first row that ends after `from` */
    const int64_t past = from - first - width, row = past < 0 ? 0 : past / stride + 1;
    const int64_t begin = first + row * stride;
    x->flat = k->at[i] + row * width + (begin < from ? from - begin : 0);
    if (row >= rows || begin >= to) return;
    if (rows == 1) { /* as it lies */
        const int64_t lo = begin < from ? from : begin, hi = begin + width < to ? begin + width : to;
        x->n = hi - lo;
        x->param = (const char *)param + (lo - from) * x->size;
        x->grad = (const char *)grad + (lo - from) * x->size;
        return;
    }
    x->param = x->p;
    x->grad = x->g;
    x->next = begin - from;
    const int64_t here = (to - 1 - begin) / stride + 1;
    x->left = here < rows - row ? here : rows - row;
    x->start = (const char *)k->start + x->flat * x->size;
    x->impulse = (const char *)(k->impulse + x->flat);
    if (begin < from) take_row(x, param, grad);
}

/* Enter a layer's work of a step. */
void thermoopt_worked(const struct travel *k, int64_t i, double sum) {
    k->done[i] = k->done[i] * k->keep - k->work * sum;
}

/* Write a layer's sums: those of its parts, and its work. */
void thermoopt_stood(const struct travel *k, int64_t i, const double *parts) {
    double *sums = k->sums + i * TRAVEL_SUMS;
    sums[DISTANCE2] = parts[DISTANCE2];
    sums[IMPULSE] = parts[IMPULSE];
    sums[WORK] = k->done[i];
}

void thermoopt_standing(const struct travel *k, const struct sample *x, double *sums) {
#if X86
    if (__builtin_cpu_supports("avx2")) {
        standing_avx2(k, x, sums);
        return;
    }
#endif
    standing(k, x, k->dtype, sums);
}

/* Take a layer part by part: add its forces, if it has a gradient; write its sums, if there is room for them. */
static void parts(const struct travel *k, int64_t i, int forces) {
    const int64_t first = k->first[i], end = first + (k->rows[i] - 1) * k->stride[i] + k->width[i];
    const int64_t size = k->dtype == FLOAT32 ? 4 : 2;
    struct sample x;
    double work = 0, own[2], sums[2] = {0};
    for (int64_t from = first - first % k->part; from < end; from += k->part) {
        const char *param = (const char *)k->param[i] + from * size;
        const char *grad = forces ? (const char *)k->grad[i] + from * size : param;
        thermoopt_sample(&x, k, i, param, grad, from, from + k->part < end ? from + k->part : end);
        while (x.next < x.end) {
            if (x.left > 2) { /* the next row but one, or its copy would wait for memory */
                const int64_t ahead = (x.next + 2 * x.stride) * size;
                __builtin_prefetch(param + ahead, 0, 3);
                __builtin_prefetch(grad + ahead, 0, 3);
            }
            take_row(&x, param, grad);
        }
        if (forces) work += thermoopt_forces(k, &x, (float)k->rate[i], k->grad_scale);
        if (!k->sums) continue;
        thermoopt_standing(k, &x, own);
        sums[DISTANCE2] += own[DISTANCE2];
        sums[IMPULSE] += own[IMPULSE];
    }
    if (forces) thermoopt_worked(k, i, work);
    if (k->sums) thermoopt_stood(k, i, sums);
}

static void layer(const struct travel *k, int64_t i) {
    const int forces = k->forces && k->grad[i];
    if (k->rest && forces) return;
    if (k->forces && !forces) {
        const float keep = (float)k->keep;
        for (int64_t j = 0; j < k->rows[i] * k->width[i]; j++) k->impulse[k->at[i] + j] *= keep;
        thermoopt_worked(k, i, 0);
    }
    if (forces || k->sums) parts(k, i, forces);
}

static void some_layers(const void *call, int64_t *next) {
    const struct travel *k = call;
    for (;;) {
        const int64_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= k->n) return;
        layer(k, i);
    }
}

/* Add a step's forces, of which a step that a GradScaler skips has none; form the sums. */
EXPORT void thermoopt_travel(const struct travel *k) {
    if (k->forces && k->found_inf && *k->found_inf != 0) return;
    together(some_layers, k, k->num_threads);
}

EXPORT int64_t thermoopt_travel_size(void) { return sizeof(struct travel); }
