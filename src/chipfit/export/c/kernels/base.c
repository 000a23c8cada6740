/*: base */
typedef char shifts_of_negatives_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

/* The arena holds other types at other times; a compiler that orders accesses by type has to know. */
#if defined(__GNUC__)
#define MAY_ALIAS __attribute__((may_alias))
#define APART __attribute__((noinline))
#else
#define MAY_ALIAS
#define APART
#endif
typedef int16_t MAY_ALIAS i16_t;
typedef uint16_t MAY_ALIAS u16_t;
typedef int32_t MAY_ALIAS i32_t;

/* One step on a row of numbers: p is the parameter of the first, `step` what is added to p from one to the next. */
typedef struct op op_t;
typedef void apply_t(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op);
struct op {
    apply_t *run;
    int32_t a, b, c, lo, hi;
    const void *t, *u;
};

/* Numbers in the arena, or constants where `data` is given. */
typedef struct {
    const void *data;
    uint32_t at;
    int32_t type;
    int32_t stride[RANK];
    const op_t *ops;
} view_t;

/*: source needs base */
static const void *source(const net_t *net, const view_t *view, int32_t index)
{
    const unsigned char *p = (view->data ? (const unsigned char *)view->data : net->arena) + view->at;
    return p + index * (view->type == NET_INT32 ? 4 : view->type >= NET_INT16 ? 2 : 1);
}

/*: target needs base */
static void *target(const net_t *net, const view_t *view, int32_t index)
{
    return net->arena + view->at + index * (view->type == NET_INT32 ? 4 : view->type >= NET_INT16 ? 2 : 1);
}

/*: apply needs base */
static void apply(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    for (; op && op->run; ++op)
        op->run(v, n, p, step, op);
}

/*: next needs base */
/* To the next place along all axes but `inner`, -1 for none; 0 behind the last place. */
static int next(int32_t *at, const int32_t *shape, int32_t inner)
{
    int32_t d;
    for (d = RANK - 1; d >= 0; --d) {
        if (d == inner)
            continue;
        if (++at[d] < shape[d])
            return 1;
        at[d] = 0;
    }
    return 0;
}

/*: load needs base */
static APART void load(int32_t *restrict v, const void *from, int32_t type, int32_t step, int32_t n)
{
    int32_t i;
    if (type == NET_INT8) {
        const int8_t *q = (const int8_t *)from;
        if (step == 1)
            for (i = 0; i < n; ++i)
                v[i] = q[i];
        else
            for (i = 0; i < n; ++i)
                v[i] = q[i * step];
    } else if (type == NET_UINT8) {
        const uint8_t *q = (const uint8_t *)from;
        if (step == 1)
            for (i = 0; i < n; ++i)
                v[i] = q[i];
        else
            for (i = 0; i < n; ++i)
                v[i] = q[i * step];
    } else if (type == NET_INT16) {
        const i16_t *q = (const i16_t *)from;
        for (i = 0; i < n; ++i)
            v[i] = q[i * step];
    } else if (type == NET_UINT16) {
        const u16_t *q = (const u16_t *)from;
        for (i = 0; i < n; ++i)
            v[i] = q[i * step];
    } else {
        const i32_t *q = (const i32_t *)from;
        for (i = 0; i < n; ++i)
            v[i] = q[i * step];
    }
}

/*: store needs base */
static APART void store(void *to, const int32_t *restrict v, int32_t type, int32_t step, int32_t n)
{
    int32_t i;
    if (type <= NET_UINT8) {
        uint8_t *q = (uint8_t *)to;
        if (step == 1)
            for (i = 0; i < n; ++i)
                q[i] = (uint8_t)v[i];
        else
            for (i = 0; i < n; ++i)
                q[i * step] = (uint8_t)v[i];
    } else if (type <= NET_UINT16) {
        u16_t *q = (u16_t *)to;
        for (i = 0; i < n; ++i)
            q[i * step] = (uint16_t)v[i];
    } else {
        i32_t *q = (i32_t *)to;
        for (i = 0; i < n; ++i)
            q[i * step] = v[i];
    }
}

/*: pointwise needs source, target, apply, next, load, store */
typedef void join_t(int32_t *v, const int32_t *w, int32_t n, const op_t *op);
typedef struct {
    int32_t shape[RANK];
    int32_t inner, channel;
    view_t out, a, b;
    join_t *join;
    const op_t *joining, *ops;
} pointwise_t;

/* One or two views, each through its own steps, joined, and through more steps, row by row of the axis `inner`. */
static int pointwise(const net_t *net, const void *given)
{
    const pointwise_t *s = (const pointwise_t *)given;
    int32_t at[RANK] = {0};
    int32_t *v = NET_WIDE(net), *w = v + CHUNK;
    const int32_t length = s->shape[s->inner], step = s->channel == s->inner;
    do {
        int32_t o = 0, a = 0, b = 0, d, first;
        for (d = 0; d < RANK; ++d) {
            o += at[d] * s->out.stride[d];
            a += at[d] * s->a.stride[d];
            b += at[d] * s->b.stride[d];
        }
        for (first = 0; first < length; first += CHUNK) {
            const int32_t n = length - first < CHUNK ? length - first : CHUNK;
            const int32_t p = step ? first : s->channel < 0 ? 0 : at[s->channel];
            load(v, source(net, &s->a, a + first * s->a.stride[s->inner]), s->a.type, s->a.stride[s->inner], n);
            apply(v, n, p, step, s->a.ops);
            if (s->join) {
                load(w, source(net, &s->b, b + first * s->b.stride[s->inner]), s->b.type, s->b.stride[s->inner], n);
                apply(w, n, p, step, s->b.ops);
                s->join(v, w, n, s->joining);
            }
            apply(v, n, p, step, s->ops);
            store(target(net, &s->out, o + first * s->out.stride[s->inner]), v, s->out.type,
                  s->out.stride[s->inner], n);
        }
    } while (next(at, s->shape, s->inner));
    return NET_OK;
}

/*: reduce needs source, target, apply, next, load, store */
typedef struct {
    int32_t shape[RANK];
    int32_t inner, channel;
    view_t out, in;
    int32_t count[3], stride[3];                 /* what is reduced: so many numbers, so far apart */
    int32_t axis[3], first[3], hop[3], apart[3]; /* windows: along which axis, where the first begins, how far they move */
    int32_t limit[3];
    int32_t skip, largest;
    const op_t *ops;
} reduce_t;

/* The sum or the largest of windows, or of whole axes; numbers outside the input count for nothing. */
static int reduce(const net_t *net, const void *given)
{
    const reduce_t *s = (const reduce_t *)given;
    int32_t at[RANK] = {0};
    int32_t *v = NET_WIDE(net), *w = v + CHUNK;
    const int32_t length = s->shape[s->inner], step = s->channel == s->inner;
    do {
        int32_t o = 0, a = 0, d, first;
        for (d = 0; d < RANK; ++d) {
            o += at[d] * s->out.stride[d];
            a += at[d] * s->in.stride[d];
        }
        for (first = 0; first < length; first += CHUNK) {
            const int32_t n = length - first < CHUNK ? length - first : CHUNK;
            const int32_t p = step ? first : s->channel < 0 ? 0 : at[s->channel];
            int32_t i, j, k, t[3], begun = 0;
            for (t[0] = 0; t[0] < s->count[0]; ++t[0])
                for (t[1] = 0; t[1] < s->count[1]; ++t[1])
                    for (t[2] = 0; t[2] < s->count[2]; ++t[2]) {
                        int32_t from = a + s->skip + first * s->in.stride[s->inner], inside = 1;
                        for (j = 0; j < 3; ++j) {
                            from += t[j] * s->stride[j];
                            if (s->limit[j]) {
                                k = s->first[j] + at[s->axis[j]] * s->hop[j] + t[j] * s->apart[j];
                                inside &= k >= 0 && k < s->limit[j];
                            }
                        }
                        if (!inside)
                            continue;
                        load(begun ? w : v, source(net, &s->in, from), s->in.type, s->in.stride[s->inner], n);
                        apply(begun ? w : v, n, p, step, s->in.ops);
                        if (begun && s->largest)
                            for (i = 0; i < n; ++i)
                                v[i] = v[i] > w[i] ? v[i] : w[i];
                        else if (begun)
                            for (i = 0; i < n; ++i)
                                v[i] += w[i];
                        begun = 1;
                    }
            apply(v, n, p, step, s->ops);
            store(target(net, &s->out, o + first * s->out.stride[s->inner]), v, s->out.type,
                  s->out.stride[s->inner], n);
        }
    } while (next(at, s->shape, s->inner));
    return NET_OK;
}

/*: get needs source */
static int32_t get(const net_t *net, const view_t *view, int32_t index)
{
    const void *p = source(net, view, index);
    switch (view->type) {
    case NET_INT8:
        return *(const int8_t *)p;
    case NET_UINT8:
        return *(const uint8_t *)p;
    case NET_INT16:
        return *(const i16_t *)p;
    case NET_UINT16:
        return *(const u16_t *)p;
    default:
        return *(const i32_t *)p;
    }
}

/*: put needs target, store */
static void put(const net_t *net, const view_t *view, int32_t index, int32_t value)
{
    store(target(net, view, index), &value, view->type, 1, 1);
}

/*: matmul needs get, put, next, sar64 */
typedef struct {
    int32_t shape[RANK]; /* of the output, rows and columns last */
    int32_t inner;
    view_t out, a, b;
    int32_t along_a, along_b;
    int32_t shift, lo, hi;
} matmul_t;

static int matmul(const net_t *net, const void *given)
{
    const matmul_t *s = (const matmul_t *)given;
    int32_t at[RANK] = {0};
    do {
        int32_t o = 0, a = 0, b = 0, d, k;
        int64_t total = 0;
        for (d = 0; d < RANK; ++d) {
            o += at[d] * s->out.stride[d];
            a += at[d] * s->a.stride[d];
            b += at[d] * s->b.stride[d];
        }
        for (k = 0; k < s->inner; ++k)
            total += (int64_t)get(net, &s->a, a + k * s->along_a) * get(net, &s->b, b + k * s->along_b);
        put(net, &s->out, o, closed64(total, s->shift, s->lo, s->hi));
    } while (next(at, s->shape, -1));
    return NET_OK;
}
