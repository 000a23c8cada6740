/*: soft needs base */
/* IEEE 754 single precision in integers, to nearest even: the same bits on every core under every option of every
   compiler. Numbers are held as their bits. */
#define bits_of(v) ((uint32_t)(v))
#define held(bits) ((int32_t)(bits))

/*: soft_pack needs soft */
/* m * 2^exponent for m below 2^62, whose lowest bit may stand for more that was cut off */
static uint32_t soft_pack(uint32_t sign, int32_t exponent, uint64_t m)
{
    uint32_t top = (uint32_t)(m >> 32), low = (uint32_t)(m & 0xffffffffu), rest;
    if (!top && !low)
        return sign;
    if (top) { /* into 32 bits */
        int32_t up = 0;
        while (top >> up)
            ++up;
        rest = low & (((uint32_t)1 << up) - 1);
        low = (top << (32 - up)) | (low >> up) | (rest != 0);
        exponent += up;
    }
    while (!(low & 0x80000000u)) {
        low <<= 1;
        --exponent;
    }
    exponent += 31 + 127; /* biased exponent of the leading bit */
    if (exponent <= 0) {
        const int32_t down = 1 - exponent;
        low = down > 31 ? 1 : (low >> down) | ((low & (((uint32_t)1 << down) - 1)) != 0);
        exponent = 0;
    }
    rest = low & 0xffu;
    low >>= 8;
    low += rest > 0x80u || (rest == 0x80u && (low & 1u));
    if (exponent > 0)
        low += ((uint32_t)exponent - 1) << 23;
    return sign | (low >= 0x7f800000u ? 0x7f800000u : low);
}

/*: soft_open needs soft */
static void soft_open(uint32_t x, int32_t *exponent, uint32_t *m)
{
    const int32_t e = (int32_t)((x >> 23) & 0xffu);
    *m = (x & 0x7fffffu) | (e ? 0x800000u : 0u);
    *exponent = (e ? e : 1) - 150;
}

/*: soft_from needs soft_pack */
static uint32_t soft_from(int32_t v)
{
    const uint32_t m = v < 0 ? 0u - (uint32_t)v : (uint32_t)v;
    return soft_pack(v < 0 ? 0x80000000u : 0u, 0, m);
}

/*: soft_add needs soft_open, soft_pack */
static APART uint32_t soft_add(uint32_t a, uint32_t b)
{
    int32_t ea, eb;
    uint32_t ma, mb;
    uint64_t x, y;
    if ((a & 0x7fffffffu) < (b & 0x7fffffffu)) {
        const uint32_t t = a;
        a = b;
        b = t;
    }
    if ((a & 0x7f800000u) == 0x7f800000u)
        return a;
    if (!(a & 0x7fffffffu))
        return a & b;
    soft_open(a, &ea, &ma);
    soft_open(b, &eb, &mb);
    x = (uint64_t)ma << 28;
    y = (uint64_t)mb << 28;
    if (ea - eb > 27) /* less than the last bit, but not nothing */
        y = mb != 0;
    else {
        uint32_t down = (uint32_t)(ea - eb);
        for (; down > 0; --down)
            y = y >> 1; /* at most 27 of 28 zeros below */
    }
    x = ((a ^ b) & 0x80000000u) ? x - y : x + y;
    return x ? soft_pack(a & 0x80000000u, ea - 28, x) : 0u;
}

/*: soft_mul needs soft_open, soft_pack */
static APART uint32_t soft_mul(uint32_t a, uint32_t b)
{
    int32_t ea, eb;
    uint32_t ma, mb;
    const uint32_t sign = (a ^ b) & 0x80000000u;
    if ((a & 0x7f800000u) == 0x7f800000u || (b & 0x7f800000u) == 0x7f800000u)
        return sign | 0x7f800000u;
    soft_open(a, &ea, &ma);
    soft_open(b, &eb, &mb);
    return soft_pack(sign, ea + eb, (uint64_t)ma * mb);
}

/*: soft_div needs soft_open, soft_pack */
static APART uint32_t soft_div(uint32_t a, uint32_t b)
{
    int32_t ea, eb, i;
    uint32_t ma, mb, rest, q = 0;
    const uint32_t sign = (a ^ b) & 0x80000000u;
    if (!(a & 0x7fffffffu))
        return sign;
    if (!(b & 0x7fffffffu) || (a & 0x7f800000u) == 0x7f800000u)
        return sign | 0x7f800000u;
    soft_open(a, &ea, &ma);
    soft_open(b, &eb, &mb);
    while (!(ma & 0x800000u)) {
        ma <<= 1;
        --ea;
    }
    while (!(mb & 0x800000u)) {
        mb <<= 1;
        --eb;
    }
    rest = ma;
    for (i = 0; i < 28; ++i) {
        q <<= 1;
        if (rest >= mb) {
            rest -= mb;
            q |= 1u;
        }
        rest <<= 1;
    }
    return soft_pack(sign, ea - eb - 28, (uint64_t)q << 1 | (rest != 0));
}

/*: soft_order needs soft */
/* Order of numbers as integers; both zeros are one. */
static int32_t soft_order(uint32_t x)
{
    return (x & 0x80000000u) ? -(int32_t)(x & 0x7fffffffu) : (int32_t)x;
}

/*: soft_clip needs soft_order */
static uint32_t soft_clip(uint32_t x, uint32_t lo, uint32_t hi)
{
    if (soft_order(x) < soft_order(lo))
        return lo;
    return soft_order(x) > soft_order(hi) ? hi : x;
}

/*: soft_parts needs soft_open */
/* Whole part and the fraction in 2^-32, cut off, of a magnitude below 2^31; `more`: whether more was cut off. */
static uint32_t soft_parts(uint32_t x, uint32_t *fraction, uint32_t *more)
{
    int32_t e;
    uint32_t m;
    soft_open(x, &e, &m);
    *more = 0;
    *fraction = 0;
    if (e >= 0)
        return e > 7 ? 0x7fffffffu : m << e;
    if (e > -24) {
        *fraction = m << (32 + e);
        return m >> -e;
    }
    if (e >= -32) {
        *fraction = e == -32 ? m : m << (32 + e);
        return 0;
    }
    *fraction = e < -63 ? 0 : m >> (-32 - e);
    *more = m != 0 && (e < -63 || (*fraction << (-32 - e)) != m);
    return 0;
}

/*: soft_round needs soft_parts */
static int32_t soft_round(uint32_t x)
{
    uint32_t fraction, more, whole = soft_parts(x, &fraction, &more);
    whole += fraction > 0x80000000u || (fraction == 0x80000000u && (more || (whole & 1u)));
    return (x & 0x80000000u) ? -(int32_t)whole : (int32_t)whole;
}

/*: soft_code needs soft_from, soft_add, soft_div, soft */
/* code -> (code + a) / t[0] + t[1], as a grid has it; t: the divisor, and what is added where it is not 0 */
static void soft_code(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const uint32_t *t = (const uint32_t *)op->t;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        uint32_t x = soft_from(v[i] + op->a);
        if (t[2])
            x = soft_add(x, t[2]);
        x = soft_div(x, t[0]);
        v[i] = held(t[1] ? soft_add(x, t[1]) : x);
    }
}

/*: soft_sum needs soft_from */
static void soft_sum(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_from(v[i]));
}

/*: soft_plus needs soft_add */
/* v + t[p * c] */
static void soft_plus(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_add(bits_of(v[i]), ((const uint32_t *)op->t)[(p + i * step) * op->c]));
}

/*: soft_times needs soft_mul */
/* v * t[p * c] */
static void soft_times(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_mul(bits_of(v[i]), ((const uint32_t *)op->t)[(p + i * step) * op->c]));
}

/*: soft_over needs soft_div */
/* v / t[0] */
static void soft_over(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_div(bits_of(v[i]), ((const uint32_t *)op->t)[0]));
}

/*: soft_between needs soft_clip */
/* clip(v, t[0], t[1]) */
static void soft_between(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_clip(bits_of(v[i]), ((const uint32_t *)op->t)[0], ((const uint32_t *)op->t)[1]));
}

/*: soft_quantise needs soft_mul, soft_add, soft_clip, soft_from, soft_round */
/* clip(round(v * t[0] + t[1]), a, b) */
static void soft_quantise(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    const uint32_t *t = (const uint32_t *)op->t;
    int32_t i;
    (void)p;
    (void)step;
    for (i = 0; i < n; ++i) {
        uint32_t x = soft_mul(bits_of(v[i]), t[0]);
        x = t[1] ? soft_add(x, t[1]) : x;
        x = soft_clip(x, soft_from(op->a), soft_from(op->b));
        v[i] = soft_round(x);
        v[i] = v[i] < op->a ? op->a : v[i] > op->b ? op->b : v[i];
    }
}

/*: soft_whole needs soft_round */
static void soft_whole(int32_t *v, int32_t n, int32_t p, int32_t step, const op_t *op)
{
    int32_t i;
    (void)p;
    (void)step;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] = soft_round(bits_of(v[i]));
}

/*: soft_sum_of needs soft_add */
static void soft_sum_of(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_add(bits_of(v[i]), bits_of(w[i])));
}

/*: soft_product_of needs soft_mul */
static void soft_product_of(int32_t *v, const int32_t *w, int32_t n, const op_t *op)
{
    int32_t i;
    (void)op;
    for (i = 0; i < n; ++i)
        v[i] = held(soft_mul(bits_of(v[i]), bits_of(w[i])));
}
