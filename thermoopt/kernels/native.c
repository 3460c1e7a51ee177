/* One AdamW step of many tensors and its sums, in one pass over memory.
 *
 * The arithmetic of the update is that of torch's fused CPU kernel, operation for operation, so that parameters
 * and moments carry the same bits; the sums are those of thermoopt/kernels/sums.py, of the parameter before the
 * step and the moments after taking the gradient in.
 *
 * Work is cut in chunks. Inside a chunk every sum has 16 float32 lanes, emptied into 16 float64 lanes every
 * BLOCK elements, added up in a fixed order at the end of the chunk, and the chunks of a tensor are added in
 * order by one thread: no result depends on how many threads there were. The number of lanes does not follow
 * the instruction set either; between AVX2 and AVX-512, and between makes of processors with AVX2, only
 * reciprocals of the sums differ, in the last place.
 *
 * The file includes itself once an instruction set: the first half below is compiled once, the second half
 * (#else) once with vectors of WIDTH floats.
 */
#ifndef WIDTH

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "team.h"
#include "travel.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#include <immintrin.h>
#else
#define X86 0
#endif

#define EXPORT __attribute__((visibility("default")))

enum { SUM_A, SUM_B, SUM_UU, SUM_TU, SUM_TT, SUM_MU, SUM_SV, SUM_GG, SUM_GT, SUM_V, SUM_M2, SUM_C, SUM_N1, SUM_D };
enum { SUMS = 14, LANES = 16 };
enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { AMSGRAD = 1, MAXIMIZE = 2, MEASURE = 4, DRY = 8 };
enum { PORTABLE, AVX2, AVX512 };

/* What a step returns. All but DONE leave the averages as they were; FOUND_INF and NO_OUT (MEASURE without a place
 * for the sums) leave everything as it was. */
enum { DONE, FOUND_INF, NONFINITE, DRY_STEP, NO_OUT };

/* Rows of the table of running averages: those of Meter in thermoopt/account/meter.py. */
enum { NULL_ENERGY = SUMS, CNULL, SELF, NOISE, WORK2, GM, MM, COLUMNS };
enum { WEIGHT = COLUMNS, WEIGHT2, LAST, LR, WD, BETA2 };

/* What `kind` says besides AMSGRAD: the common step of float32, which has bodies without the branches of the rest
 * (with the arithmetic below, a measured step of cached data in 12 to 15 % less time). */
enum { PLAIN = 16 };

/* Elements the float32 lanes take before they are emptied into float64: 32 additions a lane keep the rounding
 * of a sum of equal terms (the worst case, where errors do not cancel) below 1e-6 of the sum (tested); 16
 * additions cost 7 to 10 % of a measured step more. */
enum { BLOCK = 512 };

/* Elements whose terms wait in level-1 cache for a second pass that adds them up, where registers do not hold the
 * accumulators (below AVX-512). 128 elements take 1 to 3 % longer, 512 the same. */
enum { STAGE = 256 };

/* What Python fills in once (pointers to tables) and each step (the scalars). Mirrored in native.py. */
struct call {
    void **param, **grad, **exp_avg, **exp_avg_sq, **max_exp_avg_sq;
    float **step;
    const int64_t *numel;
    const int32_t *dtype, *flags;
    const double *lr, *weight_decay, *beta1, *beta2, *eps;
    const int32_t *chunk_tensor; /* which tensor a chunk belongs to, ascending */
    const int64_t *chunk_start;  /* its first element */
    double *partial;             /* [n_chunks, SUMS] */
    struct coefficients *coef;   /* [n_tensors] */
    double *out;                 /* [n_tensors, SUMS] */
    const float *grad_scale, *found_inf;
    double *t;                   /* [n_tensors] step counts, of this step */
    const double *scale;         /* [n_tensors] factors on the sums, or NULL */
    double *table;               /* [BETA2 + 1, n_layers] running averages, or NULL */
    const int64_t *layer;        /* [n_tensors] column of each tensor in the table */
    struct travel **travel;      /* [n_tensors] what takes in each tensor's forces, or NULL; NULL for none at all */
    const int64_t *travel_layer; /* [n_tensors] which layer of it the tensor is */
    double *forces;              /* [n_chunks] their work */
    double *standing;            /* [n_chunks, 2] squared displacement and absolute impulse, where they are due */
    double keep, number;         /* 1 - 1 / length of the average; number of this step */
    int64_t n_tensors, n_chunks, chunk_size, n_layers;
    int32_t num_threads, isa, batch, torch_width;
};

/* The scalars of one tensor's step, narrowed to float32 where torch narrows them. */
struct coefficients {
    float lerp, beta2, square, bias2_root, bias2_inverse, bias2_rest, eps, minus_step, decay, sign, energy;
    int32_t near;   /* the weight of the gradient is below 1/2: lerp starts from the old moment */
    int32_t direct; /* product() rounds as a division by bias2_root does */
    int32_t plain;  /* near; no amsgrad, no maximize, no grad_scale, not dry */
    double bias1, bias2;
};

struct work {
    void *param, *grad, *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
    int64_t count;         /* elements of this chunk */
    int64_t scalar_from;   /* elements from here on take torch's scalar path */
    const struct coefficients *c;
    const float *scale;
    struct sample *sample; /* takes in what forces are summed of, or NULL */
    int32_t write;
};

/* Terms of the sums. What memory holds as it is, in float32, is read there and not copied. */
struct stage {
    float p[STAGE], pre[STAGE], inverse[STAGE], own_g[STAGE], own_m[STAGE], own_v[STAGE];
    const float *g, *m, *v;
} __attribute__((aligned(64)));

static inline uint16_t half_from_float(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    uint32_t sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((a >> 13) & 0x1ff)); /* NaN, quiet */
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);                      /* rounds to infinity */
    if (a < 0x38800000) { /* subnormal: adding 1/2 rounds to a multiple of 2**-24, nearest-even */
        float y;
        memcpy(&y, &a, 4);
        y += 0.5f;
        memcpy(&a, &y, 4);
        return (uint16_t)(sign | (a - 0x3f000000));
    }
    a += 0xfff + ((a >> 13) & 1);
    return (uint16_t)(sign | ((a - 0x38000000) >> 13));
}

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = h & 0x7fff, u;
    float x;
    if (a >= 0x7c00) {
        u = sign | 0x7f800000 | ((a & 0x3ff) << 13);
    } else if (a >= 0x400) {
        u = sign | ((a << 13) + 0x38000000);
    } else { /* subnormal: an integer times 2**-24, exact */
        x = (float)a * 0x1p-24f;
        memcpy(&u, &x, 4);
        u |= sign;
    }
    memcpy(&x, &u, 4);
    return x;
}

/* How far ahead of the arithmetic memory is asked for. Without it a step of 27 M elements on two threads of a
 * Xeon of 2 GHz took 12 % (unmeasured) to 18 % (measured) longer; 512 bytes 2 to 7 % longer; 2048 and 4096 could
 * not be told from 1024. Working in two passes over blocks in level-1 cache was 8 % slower: it asks in bursts. */
enum { AHEAD = 1024 };

static inline __attribute__((always_inline)) void ahead(const void *from, int64_t at, int dtype) {
    __builtin_prefetch((const char *)from + at * (dtype == FLOAT32 ? 4 : 2) + AHEAD, 1, 3);
}

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)

#if X86
#define WIDTH 16
#define ISA _avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#include "native.c"
#undef WIDTH
#undef ISA
#undef TARGET
#define WIDTH 8
#define ISA _avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#include "native.c"
#undef WIDTH
#undef ISA
#undef TARGET
#endif
#define WIDTH 4
#define ISA _portable
#define TARGET
#include "native.c"

/* Best instruction set of this machine: PORTABLE, AVX2 or AVX512. */
EXPORT int thermoopt_isa(void) {
#if X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            return AVX512;
        return AVX2;
    }
#endif
    return PORTABLE;
}

/* 1 if compiled with OpenMP: threads are those that torch has started. */
EXPORT int thermoopt_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Size of struct call and struct coefficients, for Python to check its mirror against. */
EXPORT int64_t thermoopt_sizes(int which) {
    return which ? (int64_t)sizeof(struct coefficients) : (int64_t)sizeof(struct call);
}

/* Hash of the sources that this was built from (setup.py). */
#ifndef THERMOOPT_SOURCES
#define THERMOOPT_SOURCES ""
#endif
EXPORT const char *thermoopt_sources(void) {
    return THERMOOPT_SOURCES;
}

/* Split 1 / bias2_root into two floats, `bias2_inverse` the nearest one. Set `direct` if s * inverse + s * rest, the
 * second product rounded, rounds to s / bias2_root for every float s: if its error is below the distance of any
 * quotient of two floats from the middle between two floats, one part in 2**24 of half a unit in the last place
 * at least (after Brisebarre and Muller, IEEE Transactions on Computers 57, 2008). */
static void invert(struct coefficients *x) {
    const double c = x->bias2_root;
    x->bias2_inverse = (float)(1 / c);
    x->bias2_rest = 0;
    x->direct = c >= 0x1p-40 && c <= 1;
    if (!x->direct) return;
    const double rest = (1 - x->bias2_inverse * c) / c; /* the numerator is exact */
    x->bias2_rest = (float)rest;
    if (rest == 0) return;
    int exponent;
    const double z = 1 / frexp(c, &exponent); /* 1 to 2: from here on all is scaled as if this were 1 / c */
    const double missed = ldexp(fabs(rest - x->bias2_rest), exponent), size = ldexp(fabs(rest), exponent);
    /* 1 <= s < 2: first where the quotient is below 2 and s below 2 / z, then where it is not */
    const double first = missed * 2 / z + ldexp(1, ilogb(size * 2 / z) - 24);
    const double second = missed * 2 + ldexp(1, ilogb(size * 2) - 24);
    x->direct = first < 0.999 * z * 0x1p-48 && second < 0.999 * z * 0x1p-47;
}

static void prepare(const struct call *k) {
    for (int64_t i = 0; i < k->n_tensors; i++) {
        struct coefficients *c = &k->coef[i];
        const float before = *k->step[i];
        const float after = before + 1.0f;
        const double b1 = k->beta1[i], b2 = k->beta2[i], lr = k->lr[i], wd = k->weight_decay[i], eps = k->eps[i];
        /* pow and invert cost more than the rest: most tensors repeat the step and the betas of the one before */
        if (i && after == *k->step[i - 1] + ((k->flags[i - 1] & DRY) ? 1.0f : 0.0f) && b1 == k->beta1[i - 1] &&
            b2 == k->beta2[i - 1]) {
            *c = c[-1];
        } else {
            c->bias1 = 1 - pow(b1, (double)after);
            c->bias2 = 1 - pow(b2, (double)after);
            c->bias2_root = (float)sqrt(c->bias2);
            invert(c);
        }
        c->lerp = (float)(1 - b1);
        c->near = fabsf(c->lerp) < 0.5f;
        if (!c->near) c->lerp = c->lerp - 1.0f;
        c->beta2 = (float)b2;
        c->square = (float)(1 - b2);
        c->eps = (float)eps;
        c->minus_step = (float)-(lr / c->bias1);
        c->decay = wd != 0 ? (float)(1 - lr * wd) : 1.0f;
        c->sign = (k->flags[i] & MAXIMIZE) ? -1.0f : 1.0f;
        c->energy = (float)(eps * eps * c->bias2);
        if (c->energy < 0x1p-126f) c->energy = 0x1p-126f; /* its reciprocal must be finite */
        c->plain = c->near && !k->grad_scale && !(k->flags[i] & (AMSGRAD | MAXIMIZE | DRY));
        k->t[i] = after;
        if (!(k->flags[i] & DRY)) *k->step[i] = after;
    }
}

static void on(int isa, const struct work *w, int dtype, int flags, double *partial) {
#if X86
    if (isa == AVX512) {
        chunk_avx512(w, dtype, flags, partial);
        return;
    }
    if (isa == AVX2) {
        chunk_avx2(w, dtype, flags, partial);
        return;
    }
#endif
    chunk_portable(w, dtype, flags, partial);
}

/* Add the forces of a chunk's sample, and form its sums if they are due. */
static void force(const struct call *k, int64_t j, const struct travel *travel, const struct sample *x, float rate) {
    k->forces[j] = thermoopt_forces(travel, x, rate, k->grad_scale);
    if (travel->sums) thermoopt_standing(travel, x, k->standing + 2 * j);
}

static void chunk(const struct call *k, int64_t j) {
    const int64_t i = k->chunk_tensor[j], start = k->chunk_start[j], n = k->numel[i];
    const int dtype = k->dtype[i], flags = k->flags[i];
    const int64_t offset = start * (dtype == FLOAT32 ? 4 : 2);
    const int64_t width = k->torch_width * (dtype == FLOAT32 ? 1 : 2);
    struct work w;
    w.param = (char *)k->param[i] + offset;
    w.grad = (char *)k->grad[i] + offset;
    w.exp_avg = (char *)k->exp_avg[i] + offset;
    w.exp_avg_sq = (char *)k->exp_avg_sq[i] + offset;
    w.max_exp_avg_sq = (flags & AMSGRAD) ? (char *)k->max_exp_avg_sq[i] + offset : NULL;
    w.count = n - start < k->chunk_size ? n - start : k->chunk_size;
    w.scalar_from = n - n % width - start;
    w.c = &k->coef[i];
    w.scale = k->grad_scale;
    w.write = !(flags & DRY);
    w.sample = NULL;
    double *partial = k->partial + j * SUMS;
    const struct travel *travel = k->travel ? k->travel[i] : NULL;
    if (!travel) {
        on(k->isa, &w, dtype, flags, partial);
        return;
    }
    struct sample sample;
    const float rate = (flags & MAXIMIZE) ? -(float)k->lr[i] : (float)k->lr[i];
    thermoopt_sample(&sample, travel, k->travel_layer[i], w.param, w.grad, start, start + w.count);
    if (sample.next == NONE_LEFT) { /* one stretch: before anything moves */
        force(k, j, travel, &sample, rate);
        on(k->isa, &w, dtype, flags, partial);
        return;
    }
    w.sample = &sample;
    on(k->isa, &w, dtype, flags, partial);
    force(k, j, travel, &sample, rate);
}

/* Take batches of chunks until none is left. */
static void some_chunks(const void *call, int64_t *next) {
    const struct call *k = call;
    for (;;) {
        const int64_t from = __atomic_fetch_add(next, k->batch, __ATOMIC_RELAXED);
        if (from >= k->n_chunks) return;
        const int64_t to = from + k->batch < k->n_chunks ? from + k->batch : k->n_chunks;
        for (int64_t j = from; j < to; j++) chunk(k, j);
    }
}

/* Add the chunks of each tensor in order and bring in the bias corrections. */
static void finish(const struct call *k) {
    int64_t j = 0;
    for (int64_t i = 0; i < k->n_tensors; i++) {
        double s[SUMS] = {0}, work = 0, standing[2] = {0};
        const struct travel *travel = k->travel ? k->travel[i] : NULL;
        for (; j < k->n_chunks && k->chunk_tensor[j] == i; j++) {
            for (int q = 0; q < SUMS; q++) s[q] += k->partial[j * SUMS + q];
            if (travel) work += k->forces[j];
            for (int q = 0; travel && travel->sums && q < 2; q++) standing[q] += k->standing[2 * j + q];
        }
        if (travel) thermoopt_worked(travel, k->travel_layer[i], work);
        if (travel && travel->sums) thermoopt_stood(travel, k->travel_layer[i], standing);
        if (!(k->flags[i] & MEASURE)) continue;
        const double r1 = 1 / k->coef[i].bias1, b2 = k->coef[i].bias2;
        double *out = k->out + i * SUMS;
        out[SUM_A] = s[SUM_A] * r1;
        out[SUM_B] = s[SUM_B];
        out[SUM_UU] = s[SUM_UU] * (r1 * r1);
        out[SUM_TU] = s[SUM_TU] * r1;
        out[SUM_TT] = s[SUM_TT];
        out[SUM_MU] = s[SUM_MU] * (r1 * r1);
        out[SUM_SV] = s[SUM_SV] / b2;
        out[SUM_GG] = s[SUM_GG];
        out[SUM_GT] = s[SUM_GT];
        out[SUM_V] = s[SUM_V] / b2;
        out[SUM_M2] = s[SUM_M2] * (r1 * r1);
        out[SUM_C] = s[SUM_C] * b2;
        out[SUM_N1] = s[SUM_N1];
        out[SUM_D] = s[SUM_D];
        if (k->scale)
            for (int q = 0; q < SUMS; q++) out[q] *= k->scale[i];
    }
}

/* Why no average is to move: a sum that is not finite; a step with every lr 0 and every gradient 0. */
static int refusal(const struct call *k) {
    int moving = 0;
    for (int64_t i = 0; i < k->n_tensors; i++) {
        const double *s = k->out + i * SUMS;
        for (int q = 0; q < SUMS; q++)
            if (!isfinite(s[q])) return NONFINITE;
        if (k->lr[i] != 0 || s[SUM_GG] != 0) moving = 1;
    }
    return moving ? DONE : DRY_STEP;
}

/* The sums of one tensor and the terms of linear_sums() in thermoopt/physics: the definitions stand there. */
static void extend(double *x, double beta1, double t) {
    const double power = pow(beta1, t);
    const double n0 = (1 - beta1) * (1 + power) / ((1 + beta1) * (1 - power));
    const double gain = (1 - beta1) / (1 - power);
    x[NULL_ENERGY] = x[SUM_D] * n0;
    x[CNULL] = x[SUM_C] * n0;
    x[SELF] = x[SUM_B] * gain;
    if (1 - n0 != 0)
        x[NOISE] = gain * (x[SUM_SV] - x[SUM_MU]) / (1 - n0);
    else
        x[NOISE] = beta1 == 0 ? NAN : 0;
    x[WORK2] = (x[SUM_A] - x[NOISE]) * (x[SUM_A] - x[NOISE]);
    const double with_g = (1 - power) * x[SUM_A], fresh = (1 - beta1) * x[SUM_B];
    const double with_m = (1 - power) * (1 - power) * x[SUM_MU] - (1 - beta1) * (2 * with_g - fresh);
    x[GM] = t > 1 ? with_g - fresh : 0;
    x[MM] = t > 1 && with_m > 0 ? with_m : 0;
}

/* Average the sums of the step into the table, as Meter.update() does. */
static int account(const struct call *k) {
    const int refused = refusal(k);
    if (refused) return refused;
    double gap = -1, q = 0;
    for (int64_t i = 0; i < k->n_tensors; i++) {
        double x[COLUMNS];
        double *at = k->table + k->layer[i];
        const int64_t n = k->n_layers;
        memcpy(x, k->out + i * SUMS, SUMS * sizeof(double));
        extend(x, k->beta1[i], k->t[i]);
        if (k->number - at[LAST * n] != gap) {
            gap = k->number - at[LAST * n];
            q = pow(k->keep, gap);
        }
        const double p = 1 - q;
        for (int c = 0; c < COLUMNS; c++) at[c * n] = at[c * n] * q + p * x[c];
        at[WEIGHT * n] = at[WEIGHT * n] * q + p;
        at[WEIGHT2 * n] = at[WEIGHT2 * n] * (q * q) + p * p;
        at[LAST * n] = k->number;
        at[LR * n] = k->lr[i];
        at[WD * n] = k->weight_decay[i];
        at[BETA2 * n] = k->beta2[i];
    }
    return DONE;
}

/* Take the step, and average its sums in where there is a table. */
EXPORT int thermoopt_step(const struct call *k) {
    for (int64_t i = 0; !k->out && i < k->n_tensors; i++)
        if (k->flags[i] & MEASURE) return NO_OUT;
    if (k->found_inf && *k->found_inf != 0) return FOUND_INF;
    prepare(k);
    together(some_chunks, k, k->num_threads);
    finish(k);
    return k->out && k->table ? account(k) : DONE;
}

#else /* the second half: once an instruction set */

#define PARTS (LANES / WIDTH)
#define STAGED (WIDTH < LANES)
#define FN TARGET static inline __attribute__((always_inline))
#define vf CAT(vf, ISA)
#define vi CAT(vi, ISA)
#define vu CAT(vu, ISA)
#define vh CAT(vh, ISA)
#define load CAT(load, ISA)
#define store CAT(store, ISA)
#define root CAT(root, ISA)
#define fma CAT(fma, ISA)
#define pick CAT(pick, ISA)
#define divide CAT(divide, ISA)
#define reciprocal CAT(reciprocal, ISA)
#define splat CAT(splat, ISA)
#define product CAT(product, ISA)
#define where_positive CAT(where_positive, ISA)
#define add_taken CAT(add_taken, ISA)
#define add_plain CAT(add_plain, ISA)
#define kept CAT(kept, ISA)
#define keep_term CAT(keep_term, ISA)
#define place CAT(place, ISA)
#define add_staged CAT(add_staged, ISA)
#define lanes CAT(lanes, ISA)
#define body CAT(body, ISA)
#define tail CAT(tail, ISA)

typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t vh __attribute__((vector_size(2 * WIDTH)));

FN vf pick(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* x in every lane. `(vf){0} + x` costs an addition each time: -0 must become 0. */
FN vf splat(float x) {
#if WIDTH == 16
    return (vf)_mm512_set1_ps(x);
#elif WIDTH == 8
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

FN vf root(vf x) {
#if WIDTH == 16
    return (vf)_mm512_sqrt_ps((__m512)x);
#elif WIDTH == 8
    return (vf)_mm256_sqrt_ps((__m256)x);
#elif X86
    return (vf)_mm_sqrt_ps((__m128)x);
#else
    vf r;
    for (int l = 0; l < WIDTH; l++) r[l] = __builtin_sqrtf(x[l]);
    return r;
#endif
}

/* a * b + c in one rounding where torch's build for the same machine has it, else in two. */
FN vf fma(vf a, vf b, vf c) {
#if WIDTH == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif WIDTH == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    vf r;
    for (int l = 0; l < WIDTH; l++) r[l] = __builtin_fmaf(a[l], b[l], c[l]);
    return r;
#else
    return a * b + c;
#endif
}

FN vf load(int dtype, const void *from, int64_t at) {
    vf x;
    if (dtype == FLOAT32) {
        memcpy(&x, (const float *)from + at, sizeof x);
        return x;
    }
    vh h;
    memcpy(&h, (const uint16_t *)from + at, sizeof h);
    if (dtype == BFLOAT16) return (vf)(__builtin_convertvector(h, vu) << 16);
#if WIDTH == 16
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif WIDTH == 8
    return (vf)_mm256_cvtph_ps((__m128i)h);
#else
    for (int l = 0; l < WIDTH; l++) x[l] = half_to_float(h[l]);
    return x;
#endif
}

/* s / c as division rounds it, for a c that all lanes share, with rc = 1 / c rounded. An exact residual corrects
 * the quotient twice: once to within one unit in the last place, then to the nearest (Markstein, IBM Journal of
 * Research and Development 34, 1990, theorem on final corrections). No underflow can spoil the residuals: s is
 * a square root, 0 or above 2**-75, and c is at most 1. Keeps the divider free for the update's own division. */
FN vf divide(vf s, float c, float rc) {
#if WIDTH >= 8
    const vf by = splat(c), inverse = splat(rc), first = s * inverse;
    const vf near = fma(fma(-first, by, s), inverse, first);
    const vf q = fma(fma(-near, by, s), inverse, near);
    return pick(s < __builtin_inff(), q, first); /* infinity minus infinity is no residual */
#else
    (void)rc;
    return s / c;
#endif
}

/* s / bias2_root where invert() found that this rounds alike: 3 instructions in place of 8 (a measured step of
 * cached data in 8 to 10 % less time). Of the first 18000 steps at beta2 0.999 it does in 55 %. An
 * infinite s must not meet a negative rest. */
FN vf product(vf s, const struct coefficients *c) {
#if WIDTH == 16
    const vf finite = (vf)_mm512_min_ps(_mm512_set1_ps(FLT_MAX), (__m512)s);
#elif WIDTH == 8
    const vf finite = (vf)_mm256_min_ps(_mm256_set1_ps(FLT_MAX), (__m256)s);
#else
    const vf finite = pick(s < FLT_MAX, s, splat(FLT_MAX));
#endif
    return fma(s, splat(c->bias2_inverse), finite * c->bias2_rest);
}

/* 1 / d for the sums, to 2e-8 and one rounding, without the divider that the update keeps busy. */
FN vf reciprocal(vf d) {
#if WIDTH == 16
    /* a seed to 2**-14, squared by one step; a measured step in about 10 % less time than with the seed below */
    const vf y = (vf)_mm512_rcp14_ps((__m512)d);
    const vf e = fma(-d, y, splat(1));
    return fma(y, e, y);
#elif WIDTH == 8
    /* a seed to 1.5 * 2**-12, cubed by one step; a measured step in 5 to 8 % less time than with a seed from
     * integers, which needs another step */
    const vf y = (vf)_mm256_rcp_ps((__m256)d);
    const vf e = fma(-d, y, splat(1));
    return fma(y, fma(e, e, e), y);
#else
    return 1.0f / d;
#endif
}

/* C += gg * r and D += 1 where v > 0, under a mask where the instruction set has them. */
FN void where_positive(vf v, vf gg, vf r, vf *sum, vf *count) {
#if WIDTH == 16
    const __mmask16 seen = _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
    *sum = (vf)_mm512_mask3_fmadd_ps((__m512)gg, (__m512)r, (__m512)*sum, seen);
    *count = (vf)_mm512_mask_add_ps((__m512)*count, seen, (__m512)*count, _mm512_set1_ps(1));
#else
    const vi seen = v > 0;
    *sum = fma((vf)((vi)gg & seen), r, *sum);
    *count += (vf)((vi)splat(1) & seen);
#endif
}

/* Round to nearest, ties to even. */
FN void store(int dtype, void *to, int64_t at, vf x) {
    if (dtype == FLOAT32) {
        memcpy((float *)to + at, &x, sizeof x);
        return;
    }
    vh h;
    if (dtype == BFLOAT16) {
        vu u = (vu)x;
        u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        u |= (vu)(x != x); /* NaN stays NaN */
        h = __builtin_convertvector(u, vh);
    } else {
#if WIDTH == 16
        h = (vh)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif WIDTH == 8
        h = (vh)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
        for (int l = 0; l < WIDTH; l++) h[l] = half_from_float(x[l]);
#endif
    }
    memcpy((uint16_t *)to + at, &h, sizeof h);
}

/* The sums of the step taken, and the others; without the bias corrections, which finish() brings in. */
FN void add_taken(vf p, vf g, vf m, vf v, vf pre, vf acc[SUMS]) {
    const vf u = m * pre, gg = g * g, size = (vf)((vi)g & 0x7fffffff);
    acc[SUM_A] = fma(g, u, acc[SUM_A]);
    acc[SUM_B] = fma(gg, pre, acc[SUM_B]);
    acc[SUM_UU] = fma(u, u, acc[SUM_UU]);
    acc[SUM_TU] = fma(p, u, acc[SUM_TU]);
    acc[SUM_MU] = fma(m, u, acc[SUM_MU]);
    acc[SUM_SV] = fma(v, pre, acc[SUM_SV]);
    acc[SUM_N1] = fma(size, pre, acc[SUM_N1]);
}

FN void add_plain(vf p, vf g, vf m, vf v, vf inverse, vf acc[SUMS]) {
    const vf gg = g * g;
    acc[SUM_TT] = fma(p, p, acc[SUM_TT]);
    acc[SUM_GG] += gg;
    acc[SUM_GT] = fma(g, p, acc[SUM_GT]);
    acc[SUM_V] += v;
    acc[SUM_M2] = fma(m, m, acc[SUM_M2]);
    where_positive(v, gg, inverse, &acc[SUM_C], &acc[SUM_D]);
}

FN void keep_term(float *to, vf x) { memcpy(to, &x, sizeof x); }

FN vf kept(const float *from, int64_t at) {
    vf x;
    memcpy(&x, from + at, sizeof x);
    return x;
}

/* Say where the terms of the elements from `at` will lie. */
FN void place(struct stage *x, const struct work *w, int64_t at, int kind) {
    x->g = kind == PLAIN ? (const float *)w->grad + at : x->own_g;
    x->m = kind == PLAIN ? (const float *)w->exp_avg + at : x->own_m;
    x->v = kind == PLAIN ? (const float *)w->exp_avg_sq + at : x->own_v;
}

/* Add the terms of every PARTS-th vector of `n` elements. AVX2 has 16 registers for the accumulators of two parts,
 * 28: a measured step that kept them in memory took 20 % longer. Half of those of one part fit. */
FN void add_staged(const struct stage *x, int64_t n, int part, vf acc[SUMS]) {
    const float *p = x->p, *g = x->g, *m = x->m, *v = x->v;
    vf own[SUMS];
    for (int q = 0; q < SUMS; q++) own[q] = acc[q];
    for (int64_t j = part * WIDTH; j < n; j += LANES)
        add_taken(kept(p, j), kept(g, j), kept(m, j), kept(v, j), kept(x->pre, j), own);
    for (int64_t j = part * WIDTH; j < n; j += LANES)
        add_plain(kept(p, j), kept(g, j), kept(m, j), kept(v, j), kept(x->inverse, j), own);
    for (int q = 0; q < SUMS; q++) acc[q] = own[q];
}

/* The step of WIDTH elements from `at`; those from lane `scalar` on as torch's scalar path rounds them. Their terms
 * are added to `acc`, or go to `slot` of the stage. */
FN void lanes(const struct work *w, int64_t at, int scalar, int dtype, int kind, int measure, vf acc[SUMS],
              struct stage *stage, int64_t slot) {
    const struct coefficients *c = w->c;
    const int plain = kind == PLAIN, write = plain || w->write;
    vf p = load(dtype, w->param, at), g = load(dtype, w->grad, at);
    vf m = load(dtype, w->exp_avg, at), v = load(dtype, w->exp_avg_sq, at);
    if (!plain) {
        if (w->scale) {
            g = g / *w->scale;
            if (write) store(dtype, w->grad, at, g);
        }
        g = g * c->sign;
    }
    /* moments */
    const vf cg = g * c->square;
    m = fma(splat(c->lerp), g - m, plain || c->near ? m : g);
    vf next = fma(cg, g, v * c->beta2);
    if (scalar < WIDTH) {
        vi lane;
        for (int l = 0; l < WIDTH; l++) lane[l] = l;
        next = pick(lane < scalar, next, fma(v, splat(c->beta2), cg * g));
    }
    v = next;
    vf top = v;
    if (kind == AMSGRAD) {
        vf old = load(dtype, w->max_exp_avg_sq, at);
        top = pick(old < v, v, old);
        top = pick(v != v, v, top);
        if (write) store(dtype, w->max_exp_avg_sq, at, top);
    }
    /* update */
    const vf s = root(top);
    const vf denom = (plain && c->direct ? product(s, c) : divide(s, c->bias2_root, c->bias2_inverse)) + c->eps;
    const vf moved = p * c->decay + (m * c->minus_step) / denom;
    if (write) {
        store(dtype, w->exp_avg, at, m);
        store(dtype, w->exp_avg_sq, at, v);
        store(dtype, w->param, at, moved);
    }
    if (!measure) return;
    const vf pre = reciprocal(denom), inverse = reciprocal(v + c->energy);
    if (STAGED) {
        keep_term(stage->p + slot, p);
        keep_term(stage->pre + slot, pre);
        keep_term(stage->inverse + slot, inverse);
        if (plain) return;
        keep_term(stage->own_g + slot, g);
        keep_term(stage->own_m + slot, m);
        keep_term(stage->own_v + slot, v);
    } else {
        add_taken(p, g, m, v, pre, acc);
        add_plain(p, g, m, v, inverse, acc);
    }
}

/* The last elements of a tensor, through buffers padded to LANES; what is padding counts nowhere. */
TARGET static __attribute__((noinline)) void tail(const struct work *w, int64_t at, int dtype, int kind,
                                                  int measure, double total[SUMS][LANES]) {
    const size_t size = dtype == FLOAT32 ? 4 : 2;
    for (; at < w->count; at += LANES) {
        const int64_t n = w->count - at < LANES ? w->count - at : LANES;
        char p[4 * LANES] = {0}, g[4 * LANES] = {0}, m[4 * LANES] = {0}, v[4 * LANES] = {0}, x[4 * LANES] = {0};
        memcpy(p, (char *)w->param + at * size, n * size);
        memcpy(g, (char *)w->grad + at * size, n * size);
        memcpy(m, (char *)w->exp_avg + at * size, n * size);
        memcpy(v, (char *)w->exp_avg_sq + at * size, n * size);
        if (kind == AMSGRAD) memcpy(x, (char *)w->max_exp_avg_sq + at * size, n * size);
        struct work padded = *w;
        padded.param = p;
        padded.grad = g;
        padded.exp_avg = m;
        padded.exp_avg_sq = v;
        padded.max_exp_avg_sq = x;
        for (int part = 0; part < PARTS; part++) {
            vf acc[SUMS];
            struct stage stage;
            memset(acc, 0, sizeof acc);
            const int64_t scalar = w->scalar_from - at - part * WIDTH;
            lanes(&padded, part * WIDTH, scalar < 0 ? 0 : scalar < WIDTH ? (int)scalar : WIDTH, dtype, kind,
                  measure, acc, &stage, 0);
            if (STAGED && measure) {
                place(&stage, &padded, part * WIDTH, kind);
                add_staged(&stage, WIDTH, 0, acc);
            }
            for (int q = 0; q < SUMS; q++)
                for (int l = 0; l < WIDTH; l++)
                    if (part * WIDTH + l < n) total[q][part * WIDTH + l] += (double)acc[q][l];
        }
        if (!w->write) continue;
        memcpy((char *)w->param + at * size, p, n * size);
        if (w->scale) memcpy((char *)w->grad + at * size, g, n * size);
        memcpy((char *)w->exp_avg + at * size, m, n * size);
        memcpy((char *)w->exp_avg_sq + at * size, v, n * size);
        if (kind == AMSGRAD) memcpy((char *)w->max_exp_avg_sq + at * size, x, n * size);
    }
}

FN void body(const struct work *w, int dtype, int kind, int measure, double *partial) {
    /* copies that no store can alias, so that the scalars stay in registers */
    const struct coefficients own = *w->c;
    const float scale = w->scale ? *w->scale : 1.0f;
    struct work mine = *w;
    mine.c = &own;
    mine.scale = w->scale ? &scale : NULL;
    struct stage stage;
    double total[SUMS][LANES];
    memset(total, 0, sizeof total);
    /* every element before `plain` takes torch's vector path */
    const int64_t vector = w->scalar_from < w->count ? w->scalar_from : w->count;
    const int64_t plain = vector - vector % LANES;
    int64_t at = 0, next = w->sample ? w->sample->next : NONE_LEFT;
    while (at < plain) {
        const int64_t end = at + BLOCK < plain ? at + BLOCK : plain;
        vf acc[PARTS][SUMS];
        for (int q = 0; measure && q < SUMS; q++) /* memset keeps them in memory */
            for (int part = 0; part < PARTS; part++) acc[part][q] = splat(0);
        while (at < end) {
            /* rows of a sample too are taken stage by stage: only memory that has been asked for is there already, and
             * a stage of BLOCK made the forces of 5 M parameters take 15 % of a step with AVX-512 where 6 % do */
            const int staged = (STAGED && measure) || w->sample;
            const int64_t from = at, to = staged && at + STAGE < end ? at + STAGE : end;
            /* not moved yet; in the innermost loop, beside the elements around them, they cost every step 15 to 20 % */
            for (; next < to; next = w->sample->next) take_row(w->sample, w->param, w->grad);
            for (; at < to; at += LANES) {
                ahead(mine.param, at, dtype);
                ahead(mine.grad, at, dtype);
                ahead(mine.exp_avg, at, dtype);
                ahead(mine.exp_avg_sq, at, dtype);
                for (int part = 0; part < PARTS; part++)
                    lanes(&mine, at + part * WIDTH, WIDTH, dtype, kind, measure, acc[part], &stage,
                          at - from + part * WIDTH);
            }
            if (!STAGED || !measure) continue;
            place(&stage, &mine, from, kind);
            for (int part = 0; part < PARTS; part++) add_staged(&stage, to - from, part, acc[part]);
        }
        if (measure)
            for (int q = 0; q < SUMS; q++)
                for (int part = 0; part < PARTS; part++)
                    for (int l = 0; l < WIDTH; l++) total[q][part * WIDTH + l] += (double)acc[part][q][l];
    }
    for (; next < w->count; next = w->sample->next) take_row(w->sample, w->param, w->grad);
    if (at < w->count) tail(w, at, dtype, kind, measure, total);
    if (measure)
        for (int q = 0; q < SUMS; q++) {
            double s = 0;
            for (int l = 0; l < LANES; l++) s += total[q][l];
            partial[q] = s;
        }
}

/* One chunk: a body for each dtype, with and without measuring, and for the plain step of float32. */
TARGET static void CAT(chunk, ISA)(const struct work *w, int dtype, int flags, double *partial) {
    const int kind = flags & AMSGRAD, plain = WIDTH >= 8 && dtype == FLOAT32 && w->c->plain;
    switch (plain ? -1 : dtype * 2 + ((flags & MEASURE) ? 1 : 0)) {
        case -1:
            if (flags & MEASURE)
                body(w, FLOAT32, PLAIN, 1, partial);
            else
                body(w, FLOAT32, PLAIN, 0, partial);
            break;
        case 0: body(w, FLOAT32, kind, 0, partial); break;
        case 1: body(w, FLOAT32, kind, 1, partial); break;
        case 2: body(w, BFLOAT16, kind, 0, partial); break;
        case 3: body(w, BFLOAT16, kind, 1, partial); break;
        case 4: body(w, FLOAT16, kind, 0, partial); break;
        default: body(w, FLOAT16, kind, 1, partial); break;
    }
}

#undef PARTS
#undef STAGED
#undef FN
#undef vf
#undef vi
#undef vu
#undef vh
#undef load
#undef store
#undef root
#undef fma
#undef pick
#undef divide
#undef reciprocal
#undef splat
#undef product
#undef where_positive
#undef add_taken
#undef add_plain
#undef kept
#undef keep_term
#undef place
#undef add_staged
#undef lanes
#undef body
#undef tail

#endif
