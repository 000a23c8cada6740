/*: soft_tround needs soft_parts */
/* To nearest by magnitude; a fraction from 0.5 up to 0.501 goes to the even neighbour. */
static void soft_tround(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    (void)op;
    for (i = 0; i < n; ++i) {
        uint32_t fraction, more, whole = soft_parts(bits_of(v[i]), &fraction, &more);
        whole += fraction >= 0x80000000u + 4294968u || (fraction >= 0x80000000u && (whole & 1u));
        v[i] = v[i] < 0 ? -(int32_t)whole : (int32_t)whole;
    }
}

/*: soft_leaky needs soft_order, soft_mul */
/* v above 0, else v * t[p * c] */
static void soft_leaky(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i)
        if (soft_order(bits_of(v[i])) <= 0)
            v[i] = held(soft_mul(bits_of(v[i]), ((const uint32_t *)op->t)[(p + i * step) * op->c]));
}

/*: soft_gate needs soft_add, soft_clip, soft_div, soft_mul */
/* clip(v + t[0], 0, t[1]) / t[1], times v where a is 1 */
static void soft_gate(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const uint32_t *t = (const uint32_t *)op->t;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        const uint32_t gate = soft_div(soft_clip(soft_add(bits_of(v[i]), t[0]), 0u, t[1]), t[1]);
        v[i] = held(op->a ? soft_mul(bits_of(v[i]), gate) : gate);
    }
}

/*: average needs base */
/* half_even((v + w) / 2) */
static void average(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    (void)op;
    for (i = 0; i < n; ++i) {
        const int32_t x = v[i] + w[i];
        v[i] = (x + ((x >> 1) & 1)) >> 1;
    }
}

/*: table_rows needs get, put, load */
typedef struct {
    int32_t count, rows, length;
    view_t out, in, table; /* strides of the output: number, entry */
} table_rows_t;

static int table_rows(const net_t *net, const void *given)
{
    const table_rows_t *s = (const table_rows_t *)given;
    int32_t i, e;
    for (i = 0; i < s->count; ++i) {
        const int32_t row = get(net, &s->in, i * s->in.stride[0]);
        if (row < 0 || row >= s->rows)
            return NET_ERROR_INDEX;
        for (e = 0; e < s->length; ++e)
            put(net, &s->out, i * s->out.stride[0] + e * s->out.stride[1], get(net, &s->table, row * s->length + e));
    }
    return NET_OK;
}
