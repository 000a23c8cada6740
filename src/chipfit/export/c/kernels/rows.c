/*: half_even needs base */
/* clip(half_even((v + c) / 2^a), lo, hi): one more than half is added where the quotient is odd. */
static void half_even(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t k = op->a, half = ((int32_t)1 << (k - 1)) - 1, add = op->c;
    const int32_t lo = op->lo, hi = op->hi;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        int32_t x = v[i] + add;
        x = (x + half + ((x >> k) & 1)) >> k;
        x = x < lo ? lo : x;
        v[i] = x > hi ? hi : x;
    }
}

/*: clip needs base */
/* clip((v << a) + c, lo, hi); v is clipped before, so that nothing overflows. t: to where */
static void clip(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t *t = (const int32_t *)op->t;
    const int32_t l = t[0], h = t[1], lo = op->lo, hi = op->hi, factor = (int32_t)1 << op->a, add = op->c;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        int32_t x = v[i] < l ? l : v[i];
        x = x > h ? h : x;
        x = x * factor + add;
        x = x < lo ? lo : x;
        v[i] = x > hi ? hi : x;
    }
}

/*: clamp needs base */
static void clamp(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t lo = op->lo, hi = op->hi;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        int32_t x = v[i] < lo ? lo : v[i];
        v[i] = x > hi ? hi : x;
    }
}

/*: affine needs base */
/* v * a + b */
static void affine(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t a = op->a, b = op->b;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i)
        v[i] = v[i] * a + b;
}

/*: LOOK_UP needs base */
/* A table from code a to a + b - 1, c entries a channel; t: its entries. */
static void LOOK_UP(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t first = op->a, last = op->b - 1;
    int32_t i;
    for (i = 0; i < n; ++i) {
        int32_t x = v[i] - first;
        x = x < 0 ? 0 : x > last ? last : x;
        v[i] = ((const ENTRY *)op->t)[x + (p + i * step) * op->c];
    }
}

/*: sar64 needs base */
/* v / 2^k rounded down, 0 <= k < 64; written in halves, since small cores call a library for a shift of 64 bits. */
static int64_t sar64(int64_t v, int32_t k)
{
    const int32_t high = (int32_t)(v >> 32);
    const uint32_t low = (uint32_t)((uint64_t)v & 0xffffffffu);
    if (k == 0)
        return v;
    if (k >= 32)
        return high >> (k - 32);
    return ((int64_t)(high >> k) * 4294967296) + (int64_t)((low >> k) | ((uint32_t)high << (32 - k)));
}

/* clip(half_even(v * 2^shift), lo, hi) */
static int32_t closed64(int64_t v, int32_t shift, int32_t lo, int32_t hi)
{
    if (shift < 0) {
        const int64_t down = shift < -62 ? 0 : sar64(v, -shift);
        const int64_t below = shift < -62 ? 0 : v - (int64_t)((uint64_t)down << 1 << (-shift - 1));
        const int64_t half = shift < -62 ? 1 : (int64_t)((uint64_t)1 << (-shift - 1));
        v = down + (below > half || (below == half && (down & 1)));
    } else {
        for (; shift > 0 && v < 4294967296 && v > -4294967296; --shift)
            v = v * 2;
    }
    return v < lo ? lo : v > hi ? hi : (int32_t)v;
}

/*: close needs sar64 */
/* clip(half_even((v + c) * 2^a), lo, hi) in 64 bits */
static void close(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i)
        v[i] = closed64((int64_t)v[i] + op->c, op->a, op->lo, op->hi);
}

/*: close_wide needs sar64 */
/* clip(v * 2^a + c, lo, hi) in 64 bits */
static void close_wide(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i)
        v[i] = closed64(v[i], op->a, op->lo - op->c, op->hi - op->c) + op->c;
}

/*: multiply_add needs sar64 */
/* clip(half_even((t[p] * v + u[p]) * 2^a), lo, hi) */
static void multiply_add(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t *weight = (const int32_t *)op->t;
    const int64_t *bias = (const int64_t *)op->u;
    int32_t i;
    for (i = 0; i < n; ++i)
        v[i] = closed64((int64_t)weight[p + i * step] * v[i] + bias[p + i * step], op->a, op->lo, op->hi);
}

/*: quotient needs base */
/* half_even(clip(v, lo, hi) / a) */
static void quotient(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const int32_t lo = op->lo, hi = op->hi, by = op->a;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        const int32_t x = v[i] < lo ? lo : v[i] > hi ? hi : v[i];
        int32_t q = x / by, rest = x % by;
        if (rest < 0) {
            rest += by;
            --q;
        }
        v[i] = q + (rest > by - rest || (rest == by - rest && (q & 1)));
    }
}

/*: line needs base */
/* 0.001 of 2^32: how much later steps to odd numbers come where `band` is 1. */
#define LINE_BAND 4294967

/* A staircase of b steps up from code a: step = floor((slope * (v - origin) + part * 2^22) / 2^(32 + shift)). There are
   two lines a channel where `where` is given, one below it and one from it on. Float arithmetic moves some steps away
   from their line: `moved` has such a step and, from bit 10 on, by how many numbers. */
typedef struct {
    const int32_t *slope, *origin, *where;
    const uint8_t *part, *shift;
    const uint16_t *first, *moved; /* of a line: where its moved steps begin */
    int32_t band, usual, most, each, plain; /* how far a step is moved where no list says it, and at most; 0 where all channels have the same lines; 1
                                      where no channel has one code only */
} line_t;

static APART int32_t line_moved(const line_t *s, int32_t l, int32_t k, int64_t rest, int64_t unit)
{
    int32_t j;
    for (j = s->moved ? s->first[l] : 0; s->moved && j < s->first[l + 1]; ++j)
        if ((s->moved[j] & 1023) == k)
            return rest < unit * (s->moved[j] >> 10);
    return rest < unit * s->usual;
}

static int32_t line_step(const line_t *s, int32_t l, int32_t x, int32_t steps, int32_t code)
{
    const int32_t slope = s->slope[l];
    int64_t y;
    int32_t k;
    if (slope == 0) /* one code */
        return s->origin[l];
    y = (int64_t)slope * (x - s->origin[l]) + ((int64_t)s->part[l] * 4194304);
    k = (int32_t)(y >> 32) >> s->shift[l];
    k = k < 0 ? 0 : k > steps ? steps : k;
    if ((s->most || s->band) && k > 0) {
        const int64_t late = s->band && ((k + code) & 1) ? (int64_t)LINE_BAND * ((int32_t)1 << s->shift[l]) : 0;
        const int64_t rest = y - (int64_t)((uint64_t)((uint32_t)k << s->shift[l]) << 32) - late;
        const int64_t unit = slope < 0 ? -(int64_t)slope : slope;
        if (rest < unit * s->most || rest < 0)
            k -= line_moved(s, l, k, rest, unit);
    }
    return k;
}

/* A row of channels in one go; `near` is 1 where a number is so near to a step that it has to be looked at. */
static int32_t line_row(int32_t *restrict to, int32_t *restrict near, const int32_t *restrict v, int32_t n,
                        const line_t *s, int32_t p, int32_t steps)
{
    const int32_t *restrict slope = s->slope + p;
    const int32_t *restrict origin = s->origin + p;
    const uint8_t *restrict part = s->part + p;
    const uint8_t *restrict shift = s->shift + p;
    const int32_t most = s->most || s->band ? (s->most >> 2) + s->band : -1; /* a slope is below 2^30 */
    const int32_t band = s->band;
    int32_t i, any = 0;
    for (i = 0; i < n; ++i) {
        const int64_t y = (int64_t)slope[i] * (v[i] - origin[i]) + ((int64_t)part[i] * 4194304);
        const int32_t high = (int32_t)(y >> 32);
        int32_t k = high >> shift[i];
        const int32_t on = ((high & (((int32_t)1 << shift[i]) - 1)) <= most + ((band << shift[i]) >> 9)) & (k > 0) & (k <= steps);
        near[i] = on;
        any |= on;
        k = k < 0 ? 0 : k;
        to[i] = k > steps ? steps : k;
    }
    return any;
}

static void line(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const line_t *s = (const line_t *)op->t;
    const int32_t steps = op->b, code = op->a;
    int32_t row[64], near[64], i, j, done;
    for (i = 0; i < n; i = done) {
        done = i + 64 < n ? i + 64 : n;
        if (!s->where && s->each && step == 1 && s->plain) {
            if (line_row(row, near, v + i, done - i, s, p + i, steps))
                for (j = 0; j < done - i; ++j)
                    if (near[j])
                        row[j] = line_step(s, p + i + j, v[i + j], steps, code);
            for (j = 0; j < done - i; ++j)
                v[i + j] = row[j] + code;
            continue;
        }
        for (j = i; j < done; ++j) {
            int32_t l = (p + j * step) * s->each;
            if (s->where)
                l = 2 * l + (v[j] >= s->where[l]);
            v[j] = line_step(s, l, v[j], steps, code) + code;
        }
    }
}

/*: line_odd needs line */
/* A staircase whose step k is the code 2 k - c. */
static void line_odd(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    line(v, n, p, step, op);
    for (i = 0; i < n; ++i)
        v[i] = 2 * v[i] - op->c;
}

/*: join_codes needs base */
/* clip(round(x * a + y * b + c)) in fixed point: to nearest by magnitude, and what lies from half to `band` above it to
   the even neighbour. `but` lists the pairs of codes that float arithmetic rounds the other way, in order. */
typedef struct {
    int32_t a, b, c, shift, half, band, first, second, wide, count;
    const uint32_t *but; /* (x - first) * wide + (y - second), and 2^31 where one more, not one less, is due */
} join_codes_t;

static void join_codes(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    const join_codes_t *s = (const join_codes_t *)op->t;
    const int32_t a = s->a, b = s->b, c = s->c, shift = s->shift, half = s->half, band = s->band;
    const int32_t lo = op->lo, hi = op->hi, mask = ((int32_t)1 << shift) - 1;
    int32_t i, j;
    if (s->count == 0) {
        for (i = 0; i < n; ++i) {
            const int32_t y = v[i] * a + w[i] * b + c, sign = y >> 31, m = (y ^ sign) - sign;
            int32_t k = m >> shift;
            const int32_t f = m & mask;
            k += (f > band) | ((f >= half) & k & 1);
            k = (k ^ sign) - sign;
            k = k < lo ? lo : k;
            v[i] = k > hi ? hi : k;
        }
        return;
    }
    for (i = 0; i < n; ++i) {
        const int32_t y = v[i] * a + w[i] * b + c, sign = y >> 31, m = (y ^ sign) - sign;
        int32_t k = m >> shift;
        const int32_t f = m & mask;
        k += (f > band) | ((f >= half) & k & 1);
        k = (k ^ sign) - sign;
        k = k < lo ? lo : k > hi ? hi : k;
        {
            const uint32_t pair = (uint32_t)((v[i] - s->first) * s->wide + (w[i] - s->second));
            int32_t from = 0, to = s->count;
            while (to - from > 1) {
                j = (from + to) / 2;
                if ((s->but[j] & 0x7fffffffu) <= pair)
                    from = j;
                else
                    to = j;
            }
            if ((s->but[from] & 0x7fffffffu) == pair)
                k += (s->but[from] & 0x80000000u) ? 1 : -1;
        }
        v[i] = k;
    }
}

/*: add needs sar64 */
static void add(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i)
        v[i] = closed64((int64_t)v[i] + w[i], op->a, op->lo, op->hi);
}

/*: add32 needs base */
static void add32(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] += w[i];
}

/*: mul needs sar64 */
static void mul(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i)
        v[i] = closed64((int64_t)v[i] * w[i], op->a, op->lo, op->hi);
}

/*: mul32 needs base */
static void mul32(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] *= w[i];
}

/*: largest needs base */
static void largest(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] = v[i] > w[i] ? v[i] : w[i];
}
