/*: wtm2101 needs base */
/* clip(v / 2^a, lo, hi): half up above zero, below zero outward from a fraction of 0.75 */
static void wtm2101(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t k = op->a, lo = op->lo, hi = op->hi;
    const int32_t above = k > 0 ? (int32_t)1 << (k - 1) : 0, below = k > 1 ? (int32_t)(3u << (k - 2)) - 1 : k;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        int32_t x = v[i];
        x = (x + (x >= 0 ? above : below)) >> k;
        x = x < lo ? lo : x;
        v[i] = x > hi ? hi : x;
    }
}

/*: udiv64 needs base */
/* Division of 64 bits bit by bit: small cores have none. */
static APART uint64_t udiv64(uint64_t a, uint64_t b, uint64_t *rest)
{
    uint64_t q = 0, r = 0;
    int32_t i;
    for (i = 0; i < 64; ++i) {
        r = (r << 1) | (a >> 63);
        a = a << 1;
        q = q << 1;
        if (r >= b) {
            r -= b;
            q |= 1u;
        }
    }
    *rest = r;
    return q;
}

/* half_even(a / b) for b above 0 */
static int64_t divided(int64_t a, uint64_t b)
{
    uint64_t rest, q = udiv64(a < 0 ? 0u - (uint64_t)a : (uint64_t)a, b, &rest);
    q += rest > b - rest || (rest == b - rest && (q & 1u));
    return a < 0 ? -(int64_t)q : (int64_t)q;
}

/*: root64 needs base */
/* floor(sqrt(v)) */
static APART uint32_t root64(uint64_t v)
{
    uint64_t root = 0, bit = (uint64_t)1 << 62;
    for (; bit; bit >>= 2) {
        const uint64_t t = root + bit;
        root >>= 1;
        if (v >= t) {
            v -= t;
            root += bit;
        }
    }
    return (uint32_t)root;
}

static uint64_t lifted(uint64_t v, int32_t bits)
{
    for (; bits > 0; --bits)
        v = v << 1;
    for (; bits < 0; ++bits)
        v = v >> 1;
    return v;
}

/*: divide needs udiv64, sar64 */
static void divide(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i) {
        const int64_t a = w[i] < 0 ? -(int64_t)v[i] : v[i];
        const uint64_t b = w[i] < 0 ? 0u - (uint64_t)w[i] : (uint64_t)w[i];
        if (w[i])
            v[i] = closed64(divided(a, b), op->a, op->lo, op->hi);
        else
            v[i] = v[i] > 0 ? op->hi : v[i] < 0 ? op->lo : (op->lo > 0 ? op->lo : op->hi < 0 ? op->hi : 0);
    }
}

/*: hypotenuse needs root64, sar64 */
/* clip(half_even(floor(sqrt((v^2 + w^2) * 2^t[0])) * 2^a), lo, hi) */
static void hypotenuse(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i) {
        const int64_t square = (int64_t)v[i] * v[i] + (int64_t)w[i] * w[i];
        v[i] = closed64(root64(lifted((uint64_t)square, ((const int32_t *)op->t)[0])), op->a, op->lo, op->hi);
    }
}

/*: layer_norm needs get, put, udiv64, root64 */
typedef struct {
    int32_t shape[4]; /* rows, what is normalised over (1 and 3), and the rest */
    view_t out, in;   /* strides in the order of the shape */
    int32_t simple, root_shift, power, lo, hi;
    const int32_t *limits; /* of sums, in halves: low, high of the lowest; of the highest */
} layer_norm_t;

static int64_t limited(int64_t v, const int32_t *t)
{
    const int64_t lo = (int64_t)t[1] * 4294967296 + (uint32_t)t[0], hi = (int64_t)t[3] * 4294967296 + (uint32_t)t[2];
    return v < lo ? lo : v > hi ? hi : v;
}

static int layer_norm(const net_t *net, const void *given)
{
    const layer_norm_t *s = (const layer_norm_t *)given;
    const int32_t *is = s->in.stride, *os = s->out.stride;
    const uint64_t count = (uint64_t)s->shape[1] * (uint64_t)s->shape[3];
    int32_t a, b, c, d;
    for (a = 0; a < s->shape[0]; ++a)
        for (c = 0; c < s->shape[2]; ++c) {
            int64_t mean = 0, square = 0;
            uint64_t root;
            if (!s->simple) {
                for (b = 0; b < s->shape[1]; ++b)
                    for (d = 0; d < s->shape[3]; ++d)
                        mean += get(net, &s->in, a * is[0] + b * is[1] + c * is[2] + d * is[3]);
                mean = divided(limited(mean, s->limits), count);
            }
            for (b = 0; b < s->shape[1]; ++b)
                for (d = 0; d < s->shape[3]; ++d) {
                    const int64_t e = get(net, &s->in, a * is[0] + b * is[1] + c * is[2] + d * is[3]) - mean;
                    square += e * e;
                }
            square = divided(limited(square, s->limits), count);
            root = root64(lifted((uint64_t)square, s->root_shift));
            for (b = 0; b < s->shape[1]; ++b)
                for (d = 0; d < s->shape[3]; ++d) {
                    const int64_t e = get(net, &s->in, a * is[0] + b * is[1] + c * is[2] + d * is[3]) - mean;
                    int64_t q = 0;
                    if (root) {
                        const uint64_t size = lifted(e < 0 ? 0u - (uint64_t)e : (uint64_t)e, s->power > 0 ? s->power : 0);
                        q = divided((int64_t)size, lifted(root, s->power < 0 ? -s->power : 0));
                        q = e < 0 ? -q : q;
                    }
                    put(net, &s->out, a * os[0] + b * os[1] + c * os[2] + d * os[3],
                        q < s->lo ? s->lo : q > s->hi ? s->hi : (int32_t)q);
                }
        }
    return NET_OK;
}

/*: gru needs get, put, conv */
typedef struct {
    const conv_t *hidden; /* from the state to the three gates of all units */
    view_t input, gates, state, out, start; /* strides: step, unit; gates: codes of `hidden` */
    int32_t steps, units, reverse, begun;   /* begun: the state comes from `start` */
    int32_t input_shift, hidden_shift, gate_shift, candidate_shift;
    const int16_t *gate, *candidate;
} gru_t;

static int32_t gru_shifted(int32_t v, int32_t shift)
{
    if (shift >= 0)
        return v * ((int32_t)1 << shift);
    return (v + (((int32_t)1 << (-shift - 1)) - 1) + ((v >> -shift) & 1)) >> -shift;
}

static int32_t gru_index(const gru_t *s, int32_t mine, int32_t other, int32_t shift)
{
    const int32_t v = gru_shifted(mine * ((int32_t)1 << s->input_shift) + other * ((int32_t)1 << s->hidden_shift), shift);
    return v < -512 ? 0 : v > 511 ? 1023 : v + 512;
}

static int gru(const net_t *net, const void *given)
{
    const gru_t *s = (const gru_t *)given;
    int32_t t, u;
    for (u = 0; u < s->units; ++u)
        put(net, &s->state, u, s->begun ? get(net, &s->start, u * s->start.stride[1]) : 0);
    for (t = 0; t < s->steps; ++t) {
        const int32_t at = s->reverse ? s->steps - 1 - t : t;
        conv(net, s->hidden);
        for (u = 0; u < s->units; ++u) {
            int32_t g[3], h[3], r, z, n, x, j;
            for (j = 0; j < 3; ++j) {
                g[j] = get(net, &s->input, at * s->input.stride[0] + (u + j * s->units) * s->input.stride[1]);
                h[j] = get(net, &s->gates, u + j * s->units);
            }
            r = s->gate[gru_index(s, g[0], h[0], s->gate_shift)];
            z = s->gate[gru_index(s, g[1], h[1], s->gate_shift)];
            n = s->candidate[gru_index(s, g[2], gru_shifted(r * h[2], -7), s->candidate_shift)];
            x = gru_shifted((128 - z) * n + z * get(net, &s->state, u), -7);
            x = x < -128 ? -128 : x > 127 ? 127 : x;
            put(net, &s->state, u, x);
            put(net, &s->out, at * s->out.stride[0] + u * s->out.stride[1], x);
        }
    }
    return NET_OK;
}

/*: channel_add needs base */
/* v + t[p] */
static void channel_add(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i)
        v[i] += ((const int32_t *)op->t)[p + i * step];
}
