/* The forces of one step on sampled coordinates, added to the sums N and S of thermoopt/physics/travel.py.
 *
 * A layer's sample is `rows` stretches of `width` elements, `stride` elements apart, and lies in the flat
 * buffers from `at` on. With g the gradient (0 where it is not finite, or there is none) and eta the layer's rate,
 *
 *     S <- keep S + impulse eta g,        N <- keep N - work <eta g, theta - x0>
 *
 * in float32 element by element, added up in float64 in order: no result depends on the number of threads.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define EXPORT __attribute__((visibility("default")))

enum { FLOAT32, BFLOAT16, FLOAT16 };

/* Mirrored in native_travel.py. */
struct travel {
    void **param, **grad; /* [n] first sampled elements; a gradient may be NULL */
    const int64_t *rows, *width, *stride, *at;
    const double *rate;   /* [n] */
    const void *start;    /* x0, of the parameters' dtype */
    float *impulse;       /* S */
    double *done;         /* [n] N */
    const float *grad_scale, *found_inf;
    double keep, work, weight;
    int64_t n;
    int32_t dtype, num_threads;
};

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

static inline __attribute__((always_inline)) void layer(const struct travel *k, int64_t i, int dtype) {
    const int64_t width = k->width[i], size = dtype == FLOAT32 ? 4 : 2;
    const float keep = (float)k->keep, weight = (float)k->weight, rate = (float)k->rate[i];
    const float scale = k->grad_scale ? *k->grad_scale : 1.0f;
    double sum = 0;
    for (int64_t row = 0; row < k->rows[i]; row++) {
        const char *p = (const char *)k->param[i] + row * k->stride[i] * size;
        const char *g = k->grad[i] ? (const char *)k->grad[i] + row * k->stride[i] * size : NULL;
        const int64_t flat = k->at[i] + row * width;
        const char *x0 = (const char *)k->start + flat * size;
        float *s = k->impulse + flat;
        if (!g) {
            for (int64_t j = 0; j < width; j++) s[j] *= keep;
            continue;
        }
        for (int64_t j = 0; j < width; j++) {
            float force = number(g, j, dtype);
            if (k->grad_scale) force /= scale;
            force = (isfinite(force) ? force : 0.0f) * rate;
            s[j] = s[j] * keep + force * weight;
            sum += (double)((number(p, j, dtype) - number(x0, j, dtype)) * force);
        }
    }
    k->done[i] = k->done[i] * k->keep - k->work * sum;
}

static void some(const struct travel *k, int64_t *next) {
    for (;;) {
        const int64_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= k->n) return;
        if (k->dtype == FLOAT32)
            layer(k, i, FLOAT32);
        else if (k->dtype == BFLOAT16)
            layer(k, i, BFLOAT16);
        else
            layer(k, i, FLOAT16);
    }
}

/* Add a step's forces; a step that a GradScaler skips adds none. */
EXPORT void thermoopt_travel(const struct travel *k) {
    if (k->found_inf && *k->found_inf != 0) return;
    int64_t next = 0;
#ifdef _OPENMP
    if (k->num_threads > 1) {
        /* as in native.c: no num_threads clause */
#pragma omp parallel
        if (omp_get_thread_num() < k->num_threads) some(k, &next);
    } else
#endif
        some(k, &next);
}

EXPORT int64_t thermoopt_travel_size(void) { return sizeof(struct travel); }
