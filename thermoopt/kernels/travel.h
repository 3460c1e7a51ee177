/* Sampled coordinates of layers, for travel.c, and for native.c to copy them on its way through a layer. */
#ifndef THERMOOPT_TRAVEL_H
#define THERMOOPT_TRAVEL_H

#include <stdint.h>
#include <string.h>

enum { BESIDE = 16 }; /* elements of a row at most, and at least as many as a copy may run over */
enum { TAKEN = 1024 }; /* sampled elements of a chunk at most */

/* Mirrored in native_travel.py. */
struct travel {
    void **param, **grad; /* [n] layers; a gradient may be NULL */
    const int64_t *first; /* [n] a layer's first sampled element */
    const int64_t *rows, *width, *stride, *at;
    const double *rate;   /* [n] */
    const void *start;    /* x0, of the parameters' dtype */
    float *impulse;       /* S */
    double *done;         /* [n] N */
    double *sums;         /* [n, TRAVEL_SUMS] what to write a layer's sums to, or NULL */
    const float *grad_scale, *found_inf;
    double keep, work, weight;
    int64_t n, part;      /* elements of a part */
    int32_t dtype, num_threads;
    int32_t forces, rest; /* add forces; take only layers without a gradient */
};

enum { DISTANCE2, IMPULSE, WORK, TRAVEL_SUMS }; /* squared displacement, absolute impulse, N */

/* The sampled elements of a part of a layer, counted from its beginning, on their way into one stretch. */
struct sample {
    int64_t next;  /* where the next row begins, LAST + 1 if none does */
    int64_t left;  /* rows that begin there and after it */
    int64_t width, stride, end, size; /* of a row; elements of the part; bytes of an element */
    int64_t n, flat;                  /* elements taken so far; where the first lies in the flat buffers */
    const char *start, *impulse;      /* of the first: what will be needed with those taken */
    const char *param, *grad;         /* the taken ones, or the layer's own memory where they are one stretch */
    char p[4 * (TAKEN + BESIDE)], g[4 * (TAKEN + BESIDE)];
};

enum { NONE_LEFT = 1 << 30 };

/* Copy the next row; a copy of a fixed length is quicker, and what it has too much is overwritten by the next. */
static inline void take_row(struct sample *x, const char *param, const char *grad) {
    const int64_t at = x->next < 0 ? 0 : x->next, rest = x->next + x->width;
    const int64_t n = (rest < x->end ? rest : x->end) - at, size = x->size;
    const char *from = param + at * size, *g = grad + at * size;
    char *p = x->p + x->n * size, *to = x->g + x->n * size;
    if (x->end - at < BESIDE) {
        memcpy(p, from, n * size);
        memcpy(to, g, n * size);
    } else if (size == 4) {
        memcpy(p, from, 4 * BESIDE);
        memcpy(to, g, 4 * BESIDE);
    } else {
        memcpy(p, from, 2 * BESIDE);
        memcpy(to, g, 2 * BESIDE);
    }
    __builtin_prefetch(x->start + x->n * size, 0, 3);
    __builtin_prefetch(x->impulse + x->n * 4, 1, 3);
    x->n += n;
    x->next = --x->left > 0 ? x->next + x->stride : NONE_LEFT;
}

/* Begin with elements [from, to) of a layer; what is one stretch is taken at once. `param` and `grad` are those of
 * element `from`, here and in take_row. */
void thermoopt_sample(struct sample *x, const struct travel *k, int64_t i, const void *param, const void *grad,
                      int64_t from, int64_t to);

/* Add the forces on a part of a layer to S; return their work. The gradient is divided by `scale` if there is one. */
double thermoopt_forces(const struct travel *k, const struct sample *x, float rate, const float *scale);

/* Write squared displacement and absolute impulse of a part of a layer to `sums`. */
void thermoopt_standing(const struct travel *k, const struct sample *x, double *sums);

/* Enter a layer's work of a step. */
void thermoopt_worked(const struct travel *k, int64_t i, double sum);

/* Write a layer's sums: those of its parts, and its work. */
void thermoopt_stood(const struct travel *k, int64_t i, const double *parts);

#endif
