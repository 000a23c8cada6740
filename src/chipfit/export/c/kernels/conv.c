/*: conv needs source, target, apply, load, store */
typedef void dots_t(int32_t *o, int32_t apart, const int16_t *r, int32_t rows, const void *weight, const int32_t *bias,
                    int32_t k, int32_t m);
#if NET_UNROLL
#define NET_EIGHT(j)                                                         \
    {                                                                        \
        const int32_t x = a[j], y = b[j], p = w0[j], q = w1[j];              \
        const int32_t u = w2[j], z = w3[j];                                  \
        s0 += x * p, t0 += y * p, s1 += x * q, t1 += y * q;                  \
        s2 += x * u, t2 += y * u, s3 += x * z, t3 += y * z;                  \
    }
#endif
typedef struct {
    uint16_t out, at;
    int32_t by;
} extra_t;
typedef struct {
    view_t in, out;               /* strides: down, across, channel */
    int32_t h, w, oh, ow;         /* of the input and of the output */
    int32_t kh, kw, sy, sx, dy, dx, py, px; /* kernel, stride, dilation, border before */
    int32_t uy, ux;               /* the input is spread out so far first */
    int32_t c, groups, m, fill;   /* channels and outputs a group; what the border holds */
    int32_t ph, pw;               /* the largest of so many outputs is kept */
    dots_t *dots;
    const void *weight;
    int32_t step;                 /* bytes of a group's weights */
    const int32_t *bias;
    const extra_t *extra;         /* what negative inputs add beside, sorted by output */
    int32_t extras;
    const op_t *ops;
    int32_t cut, signs;           /* where wide inputs are cut in two, or 0; whether by magnitude */
    const int32_t *bias_high;
    const op_t *low, *high;
} conv_t;

static int32_t cut_of(int32_t x, int32_t cut, int32_t signs, int32_t part)
{
    const int32_t mask = ((int32_t)1 << cut) - 1;
    if (signs && x < 0)
        return part ? -(-x >> cut) : -(-x & mask);
    return part ? x >> cut : x & mask;
}

static void widen(const net_t *net, int16_t *restrict to, const conv_t *s, int32_t at, int32_t step, int32_t n,
                  int32_t part)
{
    const void *from = source(net, &s->in, at);
    int32_t i;
    if (s->cut) {
        int32_t x;
        for (i = 0; i < n; ++i) {
            load(&x, source(net, &s->in, at + i * step), s->in.type, 1, 1);
            to[i] = (int16_t)cut_of(x, s->cut, s->signs, part);
        }
    } else if (s->in.type == NET_INT8) {
        const int8_t *q = (const int8_t *)from;
        if (step == 1)
            for (i = 0; i < n; ++i)
                to[i] = q[i];
        else
            for (i = 0; i < n; ++i)
                to[i] = q[i * step];
    } else if (s->in.type == NET_UINT8) {
        const uint8_t *q = (const uint8_t *)from;
        if (step == 1)
            for (i = 0; i < n; ++i)
                to[i] = q[i];
        else
            for (i = 0; i < n; ++i)
                to[i] = q[i * step];
    } else {
        const i16_t *q = (const i16_t *)from;
        for (i = 0; i < n; ++i)
            to[i] = q[i * step];
    }
}

/* The inputs under a kernel as one row: [down][across][channel]. */
static APART void gather(const net_t *net, const conv_t *s, int16_t *row, int32_t y0, int32_t x0, int32_t c0,
                         int32_t c, int32_t part)
{
    const int32_t sy = s->in.stride[0], sx = s->in.stride[1], sc = s->in.stride[2];
    const int32_t fill = s->cut ? cut_of(s->fill, s->cut, s->signs, part) : s->fill;
    const int32_t whole = sc == 1 && sx == c && s->dx == 1 && s->ux == 1;
    int32_t i, j, e;
    for (i = 0; i < s->kh; ++i) {
        int32_t y = y0 + i * s->dy, inside = y >= 0;
        if (s->uy > 1) {
            inside = inside && y % s->uy == 0;
            y = y / s->uy;
        }
        inside = inside && y < s->h;
        if (inside && whole && x0 >= 0 && x0 + s->kw <= s->w) {
            widen(net, row, s, y * sy + x0 * sx + c0, 1, s->kw * c, part);
            row += s->kw * c;
            continue;
        }
        for (j = 0; j < s->kw; ++j) {
            int32_t x = x0 + j * s->dx;
            int32_t here = inside && x >= 0;
            if (s->ux > 1) {
                here = here && x % s->ux == 0;
                x = x / s->ux;
            }
            if (here && x < s->w)
                widen(net, row, s, y * sy + x * sx + c0 * sc, sc, c, part);
            else
                for (e = 0; e < c; ++e)
                    row[e] = (int16_t)fill;
            row += c;
        }
    }
}

static void extras(const conv_t *s, int32_t *o, const int16_t *row, int32_t from, int32_t to)
{
    int32_t i;
    for (i = 0; i < s->extras; ++i) {
        const extra_t *e = &s->extra[i];
        if (e->out >= from && e->out < to && row[e->at] < 0)
            o[e->out] -= e->by * row[e->at];
    }
}

/* The sums of up to two pixels, numbered window by window. */
static void sums(const net_t *net, const conv_t *s, int32_t *o, int32_t apart, int32_t pixel, int32_t rows,
                 int32_t part)
{
    int16_t *row = NET_ROWS(net);
    const int32_t each = s->m > 0 ? s->c : s->c * s->groups, k = s->kh * s->kw * each;
    const int32_t groups = s->m > 0 ? s->groups : 1, m = s->m > 0 ? s->m : each;
    const int32_t *bias = part ? s->bias_high : s->bias;
    int32_t g, r, y[2], x[2];
    for (r = 0; r < rows; ++r) {
        const int32_t size = s->ph * s->pw;
        const int32_t window = size == 1 ? pixel + r : (pixel + r) / size, down = window / s->ow;
        y[r] = down * s->ph;
        x[r] = (window - down * s->ow) * s->pw;
        if (size > 1) {
            const int32_t t = pixel + r - window * size;
            y[r] += t / s->pw;
            x[r] += t % s->pw;
        }
    }
    for (g = 0; g < groups; ++g) {
        for (r = 0; r < rows; ++r)
            gather(net, s, row + r * k, y[r] * s->sy - s->py, x[r] * s->sx - s->px, g * each, each, part);
        s->dots(o + g * m, apart, row, rows, (const unsigned char *)s->weight + g * s->step, bias + g * m, k, m);
        if (s->extras)
            for (r = 0; r < rows; ++r)
                extras(s, o + r * apart, row + r * k, g * m, g * m + m);
    }
}

static int conv(const net_t *net, const void *given)
{
    const conv_t *s = (const conv_t *)given;
    const int32_t m = (s->m > 0 ? s->m : s->c) * s->groups, window = s->ph * s->pw, pixels = s->oh * s->ow * window;
    int32_t *const o = NET_WIDE(net), *const best = o + 2 * m, *const high = o + 3 * m;
    int32_t pixel, r, i;
    for (pixel = 0; pixel < pixels; pixel += 2) {
        const int32_t rows = pixels - pixel < 2 ? 1 : 2;
        sums(net, s, o, m, pixel, rows, 0);
        if (s->cut)
            sums(net, s, high, m, pixel, rows, 1);
        for (r = 0; r < rows; ++r) {
            int32_t *v = o + r * m;
            const int32_t at = window == 1 ? pixel + r : (pixel + r) / window, t = pixel + r - at * window;
            if (s->cut) {
                apply(v, m, 0, 1, s->low);
                apply(high + r * m, m, 0, 1, s->high);
                for (i = 0; i < m; ++i)
                    v[i] += high[r * m + i];
            }
            apply(v, m, 0, 1, s->ops);
            if (window > 1) {
                for (i = 0; i < m; ++i)
                    best[i] = t == 0 || v[i] > best[i] ? v[i] : best[i];
                v = best;
            }
            if (t == window - 1) {
                const int32_t down = at / s->ow;
                store(target(net, &s->out, down * s->out.stride[0] + (at - down * s->ow) * s->out.stride[1]), v,
                      s->out.type, s->out.stride[2], m);
            }
        }
    }
    return NET_OK;
}

/*: DOTS needs conv */
/* Sums of products of one or two rows with m rows of weights: outputs four at a time, so that a number that was read
   is used often; vector units find whole rows of products, small cores a loop that is unrolled. */
static APART void DOTS(int32_t *o, int32_t apart, const int16_t *r, int32_t rows, const void *weight,
                       const int32_t *bias, int32_t k, int32_t m)
{
    const ENTRY *w = (const ENTRY *)weight;
    const int16_t *restrict a = r;
    const int16_t *restrict b = r + k;
    const int32_t m4 = m - m % 4;
    int32_t i, e;
    for (i = 0; i < m4; i += 4, w += 4 * k) {
        const ENTRY *restrict w0 = w;
        const ENTRY *restrict w1 = w + k;
        const ENTRY *restrict w2 = w + 2 * k;
        const ENTRY *restrict w3 = w + 3 * k;
        int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        if (rows == 2) {
            int32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0;
            e = 0;
#if NET_UNROLL
            for (; e + 4 <= k; e += 4) {
                NET_EIGHT(e)
                NET_EIGHT(e + 1)
                NET_EIGHT(e + 2)
                NET_EIGHT(e + 3)
            }
#endif
            for (; e < k; ++e) {
                s0 += a[e] * w0[e];
                t0 += b[e] * w0[e];
                s1 += a[e] * w1[e];
                t1 += b[e] * w1[e];
                s2 += a[e] * w2[e];
                t2 += b[e] * w2[e];
                s3 += a[e] * w3[e];
                t3 += b[e] * w3[e];
            }
            o[apart + i] = t0 + bias[i];
            o[apart + i + 1] = t1 + bias[i + 1];
            o[apart + i + 2] = t2 + bias[i + 2];
            o[apart + i + 3] = t3 + bias[i + 3];
        } else {
            for (e = 0; e < k; ++e) {
                s0 += a[e] * w0[e];
                s1 += a[e] * w1[e];
                s2 += a[e] * w2[e];
                s3 += a[e] * w3[e];
            }
        }
        o[i] = s0 + bias[i];
        o[i + 1] = s1 + bias[i + 1];
        o[i + 2] = s2 + bias[i + 2];
        o[i + 3] = s3 + bias[i + 3];
    }
    for (i = m4; i < m; ++i, w += k) {
        int32_t s0 = bias[i];
        for (e = 0; e < k; ++e)
            s0 += a[e] * w[e];
        o[i] = s0;
        if (rows == 2) {
            s0 = bias[i];
            for (e = 0; e < k; ++e)
                s0 += b[e] * w[e];
            o[apart + i] = s0;
        }
    }
}

/*: TAPS needs conv */
/* A channel by itself: rows and weights are [tap][channel]. */
static APART void TAPS(int32_t *o, int32_t apart, const int16_t *r, int32_t rows, const void *weight,
                       const int32_t *bias, int32_t k, int32_t m)
{
    const ENTRY *restrict w = (const ENTRY *)weight;
    const int32_t taps = k / m;
    int32_t c, t;
    for (; rows > 0; --rows, o += apart, r += k) {
        int32_t *restrict s = o;
        const int16_t *restrict x = r;
        if (taps == 9) {
            for (c = 0; c < m; ++c)
                s[c] = bias[c] + x[c] * w[c] + x[m + c] * w[m + c] + x[2 * m + c] * w[2 * m + c] +
                       x[3 * m + c] * w[3 * m + c] + x[4 * m + c] * w[4 * m + c] + x[5 * m + c] * w[5 * m + c] +
                       x[6 * m + c] * w[6 * m + c] + x[7 * m + c] * w[7 * m + c] + x[8 * m + c] * w[8 * m + c];
            continue;
        }
        for (c = 0; c < m; ++c)
            s[c] = bias[c];
        for (t = 0; t < taps; ++t)
            for (c = 0; c < m; ++c)
                s[c] += x[t * m + c] * w[t * m + c];
    }
}
