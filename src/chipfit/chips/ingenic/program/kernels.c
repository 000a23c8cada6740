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

/*: float_run needs source, apply, load, soft_add */
#define NOTHING 0x80000000u /* -0: whatever is added to it stays as it is, both zeros too */

/* n numbers, `apart` from each other, added to a total one after the other */
static uint32_t float_run(const net_t *net, const view_t *view, int32_t from, int32_t apart, int32_t n, uint32_t total)
{
    int32_t *v = NET_WIDE(net), first, i;
    for (first = 0; first < n; first += CHUNK) {
        const int32_t m = n - first < CHUNK ? n - first : CHUNK;
        load(v, source(net, view, from + first * apart), view->type, apart, m);
        apply(v, m, 0, 0, view->ops);
        for (i = 0; i < m; ++i)
            total = soft_add(total, bits_of(v[i]));
    }
    return total;
}

/*: float_column needs float_run */
/* n numbers, `apart` from each other, in blocks of 16, 256 and 4096 */
static uint32_t float_column(const net_t *net, const view_t *view, int32_t from, int32_t apart, int32_t n)
{
    uint32_t level[4] = {NOTHING, NOTHING, NOTHING, NOTHING};
    int32_t i, k;
    for (i = 0; i < n; i += 16) {
        level[0] = float_run(net, view, from + i * apart, apart, n - i < 16 ? n - i : 16, NOTHING);
        if (n - i < 16)
            break;
        for (k = 0; k < 3 && ((i + 16) & (((int32_t)16 << (4 * k)) - 1)) == 0; ++k) {
            level[k + 1] = soft_add(level[k + 1], level[k]);
            level[k] = NOTHING;
        }
    }
    return soft_add(soft_add(soft_add(level[0], level[1]), level[2]), level[3]);
}

/*: float_positions needs float_column */
/* n numbers, `apart` from each other, as vectors of 8 add them */
static uint32_t float_positions(const net_t *net, const view_t *view, int32_t from, int32_t apart, int32_t n)
{
    const int32_t lanes = n >= 8 ? 8 : 1, vectors = n / lanes, fours = vectors / 4, done = lanes * vectors;
    const int32_t hop = lanes * apart;
    uint32_t total = float_run(net, view, from + done * apart, apart, n - done, NOTHING);
    int32_t i, k;
    for (i = 0; i < lanes; ++i) {
        const int32_t at = from + i * apart;
        uint32_t sum = float_column(net, view, at, 4 * hop, fours);
        sum = float_run(net, view, at + 4 * fours * hop, hop, vectors - 4 * fours, sum);
        for (k = 1; k < 4; ++k)
            sum = soft_add(sum, float_column(net, view, at + k * hop, 4 * hop, fours));
        total = soft_add(total, sum);
    }
    return total;
}

/*: float_sums needs float_positions, next, target, store */
typedef struct {
    int32_t shape[RANK];
    int32_t channel;
    view_t out, in;
    int32_t down, across, row, column; /* of a window: numbers, and how far apart; down is 0 for all positions */
    const op_t *ops;
} float_sums_t;

static int float_sums(const net_t *net, const void *given)
{
    const float_sums_t *s = (const float_sums_t *)given;
    int32_t at[RANK] = {0};
    do {
        int32_t o = 0, a = 0, d, k, v;
        uint32_t total = NOTHING;
        for (d = 0; d < RANK; ++d) {
            o += at[d] * s->out.stride[d];
            a += at[d] * s->in.stride[d];
        }
        for (k = 0; k < s->down; ++k)
            total = float_run(net, &s->in, a + k * s->row, s->column, s->across, total);
        if (!s->down)
            total = float_positions(net, &s->in, a, s->column, s->across);
        v = held(total);
        apply(&v, 1, s->channel < 0 ? 0 : at[s->channel], 0, s->ops);
        store(target(net, &s->out, o), &v, s->out.type, 1, 1);
    } while (next(at, s->shape, -1));
    return NET_OK;
}
