/* Where Python's tensors lie, and whether each is contiguous memory of the size and type expected: by DLPack's C
 * exchange API, in one call for all of them.
 *
 * torch hands the API out as Tensor.__dlpack_c_exchange_api__. The function of it that is used here fills a struct
 * and owns nothing (dlpack.h, version 1.3); it needs Python's lock, which ctypes.PyDLL keeps.
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { DL_FLOAT = 2, DL_BFLOAT = 4 };

/* DLTensor of dlpack.h */
struct tensor {
    char *data;
    int32_t device, number, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t *shape, *strides;
    uint64_t offset;
};

static int is_of(const struct tensor *x, int32_t dtype) {
    const int code = dtype == BFLOAT16 ? DL_BFLOAT : DL_FLOAT, bits = dtype == FLOAT32 ? 32 : 16;
    return x->code == code && x->bits == bits && x->lanes == 1;
}

/* Elements of a contiguous tensor, -1 of any other. */
static int64_t contiguous(const struct tensor *x) {
    int64_t n = 1;
    int gaps = 0;
    for (int d = x->ndim - 1; d >= 0; d--) {
        gaps |= x->shape[d] != 1 && x->strides[d] != n;
        n *= x->shape[d];
    }
    return gaps && n ? -1 : n;
}

/* Write the addresses of a list's n tensors on one device; return how many were as expected before the first that was
 * not. `get` is Python's PyList_GetItem, `device` DLPack's type of device, `number` which of them. */
EXPORT int64_t thermoopt_addresses(int (*fill)(void *, struct tensor *), void *(*get)(void *, ptrdiff_t),
                              const int64_t *numel, const int32_t *dtype, int64_t n, int64_t *at, int32_t device,
                              int32_t number, void *list) {
    for (int64_t i = 0; i < n; i++) {
        struct tensor x;
        void *object = get(list, (ptrdiff_t)i);
        if (!object || fill(object, &x)) return i; /* a Python error is set */
        if (x.device != device || x.number != number) return i;
        if (!is_of(&x, dtype[i]) || contiguous(&x) != numel[i]) return i;
        at[i] = (int64_t)(x.data + x.offset);
    }
    return n;
}
