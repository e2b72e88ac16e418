// Functions of vectors, to 2 units in the last place or better over the whole range, subnormal results included.
//
// NaN stays NaN, and limits are taken at the infinities. Polynomials are minimax in the relative error of what is
// computed from them (Remez), which is at most 2^-25 in float and 2^-54 in double. Nothing depends on whether a product
// and a sum are contracted, nor on more than the order of operations that C prescribes.

#if DOUBLE
#define MANTISSA 52 // bits
#define BIAS 1023   // of the exponent
#define INTEGER_MAX INT64_MAX
#define INTEGER_MIN INT64_MIN
#define SMALLEST_NORMAL 0x1p-1022
#define LARGEST_FINITE 0x1.fffffffffffffp1023
#define OF_REAL(function) function
typedef uint64_t bits __attribute__((vector_size(VECTOR_BYTES)));
#else
#define MANTISSA 23
#define BIAS 127
#define INTEGER_MAX INT32_MAX
#define INTEGER_MIN INT32_MIN
#define SMALLEST_NORMAL 0x1p-126f
#define LARGEST_FINITE 0x1.fffffep127f
#define OF_REAL(function) function##f
typedef uint32_t bits __attribute__((vector_size(VECTOR_BYTES)));
#endif

#define NUMBER(x) ((real)(x))
#define LN2 NUMBER(0.693147180559945309417)
#define LOG2E NUMBER(1.44269504088896340736)
#define EACH_LANE for (int i = 0; i < LANES; i++)

#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 32")
#endif

#define POLYNOMIAL(x, coefficients) polynomial(x, coefficients, sizeof coefficients / sizeof *coefficients)
INLINE vec horner(vec x, const real *coefficients, int count, int step)
{
  vec y = splat(coefficients[count - 1]);
  UNROLLED for (int i = count - 1 - step; i >= 0; i -= step) y = y * x + coefficients[i];
  return y;
}
// In long ones the even and the odd powers apart, for they wait for themselves alone.
INLINE vec polynomial(vec x, const real *coefficients, int count)
{
  if (count < 8)
    return horner(x, coefficients, count, 1);
  const vec odd = horner(x * x, coefficients + 1, count / 2 * 2 - 1, 2);
  return odd * x + horner(x * x, coefficients, (count + 1) / 2 * 2 - 1, 2);
}

// Signs, comparisons and rounding

INLINE vec vec_abs(vec x) { return (vec)((ivec)x & INTEGER_MAX); }
INLINE vec with_sign(vec magnitude, vec sign)
{
  return (vec)(((ivec)magnitude & INTEGER_MAX) | ((ivec)sign & INTEGER_MIN));
}
INLINE vec vec_sign(vec x) { return from_mask(x > 0) - from_mask(x < 0); } // 0 of NaN, as in torch
INLINE vec vec_relu(vec x) { return greater(splat(0), x); }
INLINE vec vec_maximum(vec a, vec b) { return choose(a != a, a, greater(a, b)); }
INLINE vec vec_minimum(vec a, vec b) { return choose(a != a, a, lesser(a, b)); }
INLINE vec vec_reciprocal(vec x) { return 1 / x; }

#define DEFINE_LANEWISE(name, function)                                                                                \
  UNUSED static vec vec_##name(vec x)                                                                                  \
  {                                                                                                                    \
    EACH_LANE x[i] = (real)function(x[i]);                                                                             \
    return x;                                                                                                          \
  }
#define DEFINE_LANEWISE_OF_TWO(name, function)                                                                         \
  UNUSED static vec vec_##name(vec a, vec b)                                                                           \
  {                                                                                                                    \
    EACH_LANE a[i] = (real)function(a[i], b[i]);                                                                       \
    return a;                                                                                                          \
  }
// Single instructions, where there are such.
DEFINE_LANEWISE(floor, OF_REAL(floor))
DEFINE_LANEWISE(ceil, OF_REAL(ceil))
DEFINE_LANEWISE(trunc, OF_REAL(trunc))
DEFINE_LANEWISE(round, OF_REAL(rint))
DEFINE_LANEWISE(sqrt, OF_REAL(sqrt))
INLINE vec vec_rsqrt(vec x) { return 1 / vec_sqrt(x); }
// Of these the C libraries have float versions to 1 unit.
DEFINE_LANEWISE(sin, OF_REAL(sin))
DEFINE_LANEWISE(cos, OF_REAL(cos))
DEFINE_LANEWISE(exp2, OF_REAL(exp2))
DEFINE_LANEWISE(log2, OF_REAL(log2))
DEFINE_LANEWISE_OF_TWO(pow, OF_REAL(pow))
DEFINE_LANEWISE_OF_TWO(fmod, OF_REAL(fmod))
DEFINE_LANEWISE_OF_TWO(hypot, OF_REAL(hypot))
// And of these not.
DEFINE_LANEWISE(tan, tan)
DEFINE_LANEWISE(asin, asin)
DEFINE_LANEWISE(acos, acos)
DEFINE_LANEWISE(atan, atan)
DEFINE_LANEWISE(sinh, sinh)
DEFINE_LANEWISE(cosh, cosh)
DEFINE_LANEWISE(asinh, asinh)
DEFINE_LANEWISE(acosh, acosh)
DEFINE_LANEWISE(atanh, atanh)
DEFINE_LANEWISE(log10, log10)
DEFINE_LANEWISE(erfc, erfc)
DEFINE_LANEWISE_OF_TWO(atan2, atan2)

// Exponentials: x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite), e^x = 2^n e^r.
//
// The sum with ROUNDER rounds to an integer n and leaves it in the low bits, from where a shift brings it to the
// exponent.

#define ROUNDER NUMBER(3LL << (MANTISSA - 1))
#define POWER(k) ((vec)((bits)(k) << MANTISSA)) // 2^(k - BIAS), of the low bits of k

#if defined(__AVX512F__)
#define DEFINE_INSTRUCTION(name, instruction)                                                                          \
  INLINE vec name(vec x)                                                                                               \
  {                                                                                                                    \
    vec result;                                                                                                        \
    __asm__(instruction : "=v"(result) : "v"(x));                                                                      \
    return result;                                                                                                     \
  }
DEFINE_INSTRUCTION(exponent, "vgetexp" SUFFIX " %1, %0")
DEFINE_INSTRUCTION(mantissa, "vgetmant" SUFFIX " $15, %1, %0") // from 3/4 to 3/2; NaN below 0
INLINE vec scaled(vec x, vec n)                                // x 2^n
{
  vec result;
  __asm__("vscalef" SUFFIX " %2, %1, %0" : "=v"(result) : "v"(x), "v"(n));
  return result;
}
#endif

#if DOUBLE
#define EXP_LOWEST -746.0 // where e^x rounds to 0, to infinity, e^x - 1 to -1
#define EXP_HIGHEST 710.0
#define EXPM1_LOWEST -38.0
#define LN2_HIGH 0x1.62e42feep-1 // its products with any n are exact
#define LN2_LOW 1.90821492927058770002e-10
#define LIFT 512
#define UNLIFT 0x1p-512
static const real EXPM1[] = {
  0.5000000000000006,     0.16666666666666588,   0.04166666666657646,   0.008333333333389738, 0.001388888893166915,
  0.0001984126971868579,  2.4801505140696445e-05, 2.755740771983197e-06, 2.762609350159776e-07, 2.5053762160181396e-08};
#else
#define EXP_LOWEST -104.0f
#define EXP_HIGHEST 89.0f
#define EXPM1_LOWEST -18.0f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 1.42860677e-6f
#define LIFT 64
#define UNLIFT 0x1p-64f
static const real EXPM1[] = {0.49999997f, 0.16666539f, 0.04166775f, 0.008367088f, 0.0013837843f};
#endif

INLINE vec expm1_reduced(vec r) { return r * r * POLYNOMIAL(r, EXPM1) + r; }

// r, and n from *k = n + bias + ROUNDER.
INLINE vec reduced(vec x, int bias, vec *k)
{
  *k = x * LOG2E + (ROUNDER + bias);
  const vec n = *k - (ROUNDER + bias);
  return x - n * LN2_HIGH - n * LN2_LOW;
}

// x 2^n for any n, of k with twice the bias, rounded once: the first of two factors is exact.
INLINE vec times_power(vec x, vec k)
{
#if defined(__AVX512F__)
  return scaled(x, k - (ROUNDER + 2 * BIAS));
#else
  const bits half = (bits)k >> 1;
  return x * POWER(half) * POWER((bits)k - half);
#endif
}

INLINE vec vec_exp(vec x)
{
  vec k;
  const vec r = reduced(greater(splat(EXP_LOWEST), lesser(splat(EXP_HIGHEST), x)), 2 * BIAS, &k);
  return times_power(1 + expm1_reduced(r), k);
}

// 2^n (expm1 r + 1 - 2^-n); past n = LIFT the last term does not count. The sum of r with 1 - 2^-n is exact where the
// two nearly cancel.
INLINE vec vec_expm1(vec x)
{
  vec k;
  const vec r = reduced(greater(splat(EXPM1_LOWEST), lesser(splat(EXP_HIGHEST), x)), 2 * BIAS, &k);
  const vec n = lesser(splat(LIFT), k - (ROUNDER + 2 * BIAS)), offset = r + (1 - POWER(ROUNDER + BIAS - n));
  return with_sign(times_power(r * r * POLYNOMIAL(r, EXPM1) + offset, k), x);
}

// 1 / (1 + e^-x) with e^-x = s (1 + p): 1 + s p is the smaller part of the sum, s the exact one. All is taken times
// 2^-LIFT, because s itself overflows where the result is subnormal.
INLINE vec vec_sigmoid(vec x)
{
  vec k;
  const vec y = greater(splat(EXP_LOWEST), lesser(splat(-EXPM1_LOWEST), x)), r = reduced(-y, BIAS - LIFT, &k);
  const vec p = expm1_reduced(r), s = POWER(k);
  return UNLIFT * (1 / ((s * p + UNLIFT) + s));
}

#if DOUBLE
#define TANH_HIGHEST NUMBER(19.1)
static const real TANH[] = {-0.3333333333333242,    0.1333333333298816,    -0.05396825352625005,  0.021869461670051417,
                            -0.008862360295472141, 0.0035763901643302413, -0.0013075794342302873};
#else
#define TANH_HIGHEST NUMBER(9.02)
static const real TANH[] = {-0.33333215f, 0.13322689f, -0.05122528f};
#endif

// |x| = n ln 2 / 2 + r. With t = tanh r, which has e^2r = (1 + t) / (1 - t), and s = 2^n,
// tanh |x| = a / (a + 2 (1 - t)) with a = s - 1 + (s + 1) t.
// Rounding of n shifted by 1/4 makes n = 0 up to a result of 1/4: there the denominator is 2, and past it less is lost.
INLINE vec vec_tanh(vec x)
{
  const vec y = lesser(splat(TANH_HIGHEST), vec_abs(x));
  const vec k = (y * (2 * LOG2E) - NUMBER(0.25)) + (ROUNDER + BIAS);
  const vec s = POWER(k), r = y - (k - (ROUNDER + BIAS)) * (LN2 / 2), square = r * r;
  const vec t = square * r * POLYNOMIAL(square, TANH) + r, a = (s - 1) + (s + 1) * t;
  return with_sign(a / (a + (2 - 2 * t)), x);
}

// Logarithms: x = 2^e (1 + f) with 3/4 <= 1 + f < 3/2.

#if DOUBLE
static const real LOG1P[] = {
  -0.4999999999999997,  0.3333333333333395,    -0.25000000000019695, 0.19999999999815657,   -0.16666666662739235,
  0.14285714301406366,  -0.12500000350841065,  0.11111110798292434,  -0.09999983722898378,  0.09090889575292103,
  -0.08333732605366023, 0.0769348314925101,    -0.0713842083673167,  0.0664224870002939,    -0.06249077770624743,
  0.060873376111971786, -0.05977973318306591,  0.050755562486007336, -0.029361983334017284, 0.008058836861981528};
#else
static const real LOG1P[] = {-0.5000006f, 0.33333555f, -0.24993533f, 0.19976816f,
                             -0.1682043f, 0.14985055f, -0.12087671f, 0.05436811f};
#endif
INLINE vec log1p_reduced(vec f) { return f * f * POLYNOMIAL(f, LOG1P) + f; }

// e, and *m = 1 + f; of a normal number where there is no instruction for it.
INLINE vec split(vec x, vec *m)
{
#if defined(__AVX512F__)
  *m = mantissa(x);
  return exponent(x) - exponent(*m);
#else
  const bits one = (bits)splat(1), lowest = (bits)splat(NUMBER(0.75)), rebased = (bits)x + (one - lowest);
  *m = (vec)((rebased & (((bits)splat(2) - one) - 1)) + lowest);
  return (vec)((rebased >> MANTISSA) | (bits)splat(ROUNDER)) - (ROUNDER + BIAS);
#endif
}

// What a logarithm is of 0, infinity, negative numbers and NaN.
UNUSED static inline vec with_limits(vec x, vec logarithm)
{
  const vec limit = choose(x > 0, x, choose(x == 0, splat(-INFINITY), splat(NAN)));
  return choose((x > 0) & (x < INFINITY), logarithm, limit);
}

INLINE vec vec_log(vec x)
{
  vec m;
#if defined(__AVX512F__)
  const vec e = split(x, &m);
  return e * LN2 + log1p_reduced(m - 1);
#else
  const ivec subnormal = x < SMALLEST_NORMAL;
  const vec e = split(choose(subnormal, x * (real)(1LL << MANTISSA), x), &m) - MANTISSA * from_mask(subnormal);
  return with_limits(x, e * LN2 + log1p_reduced(m - 1));
#endif
}

// f = 2^-e x + (2^-e - 1): exact but for the last sum, whatever was lost in 1 + x.
INLINE vec vec_log1p(vec x)
{
  vec m;
  const vec whole = 1 + x, e = split(whole, &m);
#if defined(__AVX512F__)
  const vec s = scaled(splat(1), lesser(splat(LIFT), -e)), f = lesser(splat(LARGEST_FINITE), x) * s + (s - 1);
  return with_sign(e * LN2 + log1p_reduced(f), x);
#else
  const vec s = POWER(ROUNDER + BIAS - e), f = choose(e < LIFT, x * s + (s - 1), m - 1);
  return with_sign(with_limits(whole, e * LN2 + log1p_reduced(f)), x);
#endif
}

// max(x, 0) + log(1 + y) with y = e^-|x| = s (1 + p), s = 2^n. Above y = 1/2, where n is 0 or -1, 1 + y is halved. In
// either case f = a p + b with exact a and b, and b is added last: f itself is known to one rounding less.
INLINE vec vec_softplus(vec x)
{
  vec k;
  const vec r = reduced(greater(splat(EXP_LOWEST), -vec_abs(x)), BIAS + LIFT, &k), p = expm1_reduced(r);
  const vec n = k - (ROUNDER + BIAS + LIFT);
#if defined(__AVX512F__)
  const vec s = scaled(splat(1), n);
#else
  const vec s = POWER(k) * UNLIFT;
#endif
  const ivec above = s * p + s > NUMBER(0.5);
  const vec half = n * NUMBER(0.25) + NUMBER(0.5), a = choose(above, half, s), b = choose(above, n * half, s);
  const vec f = a * p + b, logarithm = (a * p + f * f * POLYNOMIAL(f, LOG1P)) + b;
  return vec_relu(x) + (logarithm + (vec)(above & (ivec)splat(LN2)));
}

// The error function: x (1 + p(x^2)) up to 7/8, from there 1 - e^(|x| q(|x|)).

#if DOUBLE
#define ERF_HIGHEST NUMBER(5.95)
static const real ERF[] = {
  0.12837916709551256,    -0.37612638903183077,   0.11283791670918115,    -0.026866170637468826,
  0.005223977544742955,   -0.0008548322075235417, 0.00012055143686927539, -1.4920985916209356e-05,
  1.638782787929331e-06,  -1.5621877628371248e-07, 1.0463280912634085e-08};
static const real LOG_ERFC[] = {-1.1283791683782498,    -0.6366197128869004,   -0.10277317724815217,
                                0.019131268033553295,   0.0002003745380975404, -0.0016768167350967856,
                                0.000558455876819708,   1.384095015004285e-05, -0.00010349021394118385,
                                5.996095533428379e-05,  -2.186569728084272e-05, 5.843174439623043e-06,
                                -1.185264417180141e-06, 1.820096615221338e-07, -2.059190548817161e-08,
                                1.6223579086410274e-09, -7.954561414189882e-11, 1.8273111332620387e-12};
#else
#define ERF_HIGHEST NUMBER(3.95)
static const real ERF[] = {0.12837915f, -0.37612504f, 0.11281922f, -0.026770486f, 0.004998928f, -0.00060204905f};
static const real LOG_ERFC[] = {-1.1285255f, -0.6356804f, -0.10531218f, 0.022922458f, -0.0032251535f, 0.00021522949f};
#endif
INLINE vec vec_erf(vec x)
{
  vec k;
  const vec y = lesser(splat(ERF_HIGHEST), vec_abs(x)), r = reduced(y * POLYNOMIAL(y, LOG_ERFC), BIAS, &k);
  const vec tail = 1 - (1 + expm1_reduced(r)) * POWER(k);
  return with_sign(choose(y > NUMBER(0.875), tail, y * POLYNOMIAL(y * y, ERF) + y), x);
}

// x Φ(x) and its slope Φ(x) + x φ(x), with the normal distribution's φ(x) = e^(-x²/2) / √(2π) and the share Φ(x) of it
// below x. In float the share beyond y = |x| is a power of 2 in one and φ(y) times Mills' ratio in the other, 0 where
// the power would be subnormal.

#if DOUBLE
INLINE vec share_below(vec x) { return (vec_erf(x * 0.707106781186547524401) + 1) * 0.5; }
INLINE vec vec_gelu(vec x) { return x * share_below(x); }
INLINE vec vec_gelu_slope(vec x)
{
  return x * (vec_exp(x * x * -0.5) * 0.398942280401432677940) + share_below(x);
}
#else
#define SHARE_LOWEST 13.04f   // where its power is 2^-BIAS
#define DENSITY_LOWEST 13.26f // and that of φ
static const real EXP2[] = {1, 0.6931472f, 0.24022648f, 0.05550358f, 0.009618503f, 0.0013391887f, 0.00015329165f};
static const real LOG_SHARE[] = {-1.1511054f,    -0.4592089f,     -0.052478194f, 0.0069975043f,
                                 -3.4065037e-05f, -0.00026923334f, 7.6253986e-05f, -1.1767197e-05f,
                                 1.0910157e-06f,  -5.6417676e-08f, 1.2367729e-09f};
static const real DENSITY[] = {0.3989423f,    -0.19947115f,    0.04986751f,  -0.008311139f,
                               0.0010398761f, -0.000104526174f, 7.838111e-06f};
static const real MILLS[] = {102.27112f, 93.78029f, 40.577026f, 9.36452f, 1};
static const real MILLS_BELOW[] = {81.60055f, 139.93369f, 103.22584f, 41.57299f, 9.364604f, 1};

// log2 of the share beyond is -1 + y p(y). Up to y = 4 less than 1e-6 of the share is lost.
INLINE vec vec_gelu(vec x)
{
  const vec y = lesser(splat(SHARE_LOWEST), vec_abs(x)), exponent = y * POLYNOMIAL(y, LOG_SHARE);
  const vec k = exponent + (ROUNDER + BIAS - 1), r = exponent - (k - (ROUNDER + BIAS - 1));
  const vec beyond = POLYNOMIAL(r, EXP2) * POWER(k);
  return x * choose(x > 0, 1 - beyond, beyond);
}

// y² is nowhere rounded: that of the leading bits is exact, and the rest is added to what is left of it by n ln 2.
INLINE vec vec_gelu_slope(vec x)
{
  const vec y = lesser(splat(DENSITY_LOWEST), vec_abs(x)), high = (vec)((ivec)y & -4096), square = high * high;
  const vec k = square * (-LOG2E / 2) + (ROUNDER + BIAS), n = k - (ROUNDER + BIAS);
  const vec r = (square + n * (2 * LN2_HIGH) + (y - high) * (y + high)) + n * (2 * LN2_LOW);
  const vec density = POLYNOMIAL(r, DENSITY) * POWER(k);
  const vec beyond = density * POLYNOMIAL(y, MILLS) / POLYNOMIAL(y, MILLS_BELOW);
  return x * density + choose(x > 0, 1 - beyond, beyond);
}
#endif
