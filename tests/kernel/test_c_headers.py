"""The C headers of emitted kernels: vectors, their functions, their storage types and random numbers."""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from pellucid.kernel.random import uniform

COMPILER = shutil.which("cc")
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror", "-fPIC"]
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

POLYNOMIALS = "exp expm1 log log1p tanh sigmoid softplus erf".split()
GELU = "gelu gelu_slope".split()
EXACT = "sqrt rsqrt reciprocal abs floor ceil round trunc sign relu".split()
LIBRARY = "sin cos tan asin acos atan sinh cosh asinh acosh atanh exp2 log2 log10 erfc".split()
OF_TWO = "maximum minimum pow fmod atan2 hypot".split()
REDUCTIONS = "sum multiplied largest smallest".split()
STORAGE = {
    "float32": ("float", torch.float32),
    "float64": ("double", torch.float64),
    "bfloat16": ("uint16_t", torch.bfloat16),
    "float16": ("uint16_t", torch.float16),
}

DRIVER = r"""
int lanes(void) { return LANES; }
#define EACH_VECTOR for (int64_t i = 0; i < count; i += LANES)
#define UNARY(name)                                                                                                   \
  void run_##name(const real *x, real *y, int64_t count)                                                              \
  {                                                                                                                    \
    EACH_VECTOR {                                                                                                      \
      vec v;                                                                                                           \
      memcpy(&v, x + i, sizeof v);                                                                                     \
      v = vec_##name(v);                                                                                               \
      memcpy(y + i, &v, sizeof v);                                                                                     \
    }                                                                                                                  \
  }
#define BINARY(name)                                                                                                  \
  void run_##name(const real *a, const real *b, real *y, int64_t count)                                               \
  {                                                                                                                    \
    EACH_VECTOR {                                                                                                      \
      vec u, v;                                                                                                        \
      memcpy(&u, a + i, sizeof u);                                                                                     \
      memcpy(&v, b + i, sizeof v);                                                                                     \
      v = vec_##name(u, v);                                                                                            \
      memcpy(y + i, &v, sizeof v);                                                                                     \
    }                                                                                                                  \
  }
#define REDUCTION(name)                                                                                               \
  real run_##name(const real *x)                                                                                      \
  {                                                                                                                    \
    vec v;                                                                                                             \
    memcpy(&v, x, sizeof v);                                                                                           \
    return name(v);                                                                                                    \
  }
#define MEMORY(type, element)                                                                                         \
  void run_load_##type(const element *p, real *y, int count)                                                          \
  {                                                                                                                    \
    const vec v = count == LANES ? load_##type(p) : load_##type##_part(p, count);                                     \
    memcpy(y, &v, sizeof v);                                                                                           \
  }                                                                                                                    \
  void run_store_##type(element *p, const real *x, int count)                                                         \
  {                                                                                                                    \
    vec v;                                                                                                             \
    memcpy(&v, x, sizeof v);                                                                                           \
    if (count == LANES)                                                                                                \
      store_##type(p, v);                                                                                              \
    else                                                                                                               \
      store_##type##_part(p, v, count);                                                                               \
  }                                                                                                                    \
  void run_constant_##type(const element *p, element *q)                                                              \
  {                                                                                                                    \
    store_##type##_part(q, load_##type##_part(p, LANES - 1), LANES - 1);                                              \
  }                                                                                                                    \
  void run_read_##type(const element *p, real *y, int64_t count)                                                      \
  {                                                                                                                    \
    for (int64_t i = 0; i < count; i++)                                                                                \
      y[i] = read_##type(p + i);                                                                                      \
  }                                                                                                                    \
  void run_write_##type(element *p, const real *x, int64_t count)                                                     \
  {                                                                                                                    \
    for (int64_t i = 0; i < count; i++)                                                                                \
      write_##type(p + i, x[i]);                                                                                      \
  }
REDUCTION(sum) REDUCTION(multiplied) REDUCTION(largest) REDUCTION(smallest)

// y: a mask's numbers, and p, q: the mask stored again and chosen between 2 and 3.
void run_bool(const uint8_t *p, uint8_t *q, real *y, real *chosen, int count)
{
  const ivec mask = count == LANES ? load_bool(p) : load_bool_part(p, count);
  const vec number = from_mask(mask), choice = choose(mask, splat(2), splat(3));
  memcpy(y, &number, sizeof number);
  memcpy(chosen, &choice, sizeof choice);
  if (count == LANES)
    store_bool(q, mask);
  else
    store_bool_part(q, mask, count);
}
void run_philox(float *out, int64_t count, uint64_t seed, uint64_t stream, uint64_t first)
{
  philox_uniform(out, count, seed, stream, first);
}
float run_philox_number(uint64_t seed, uint64_t stream, uint64_t element)
{
  return philox_number(seed, stream, element);
}
"""

# Reads and writes that end where a page ends behind which nothing may be touched, and every function once.
MAIN = r"""
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#define AT_THE_END(type, element)                                                                                     \
  for (int count = 1; count <= LANES; count++) {                                                                      \
    element *p = (element *)(void *)end - count;                                                                      \
    run_store_##type(p, x, count);                                                                                    \
    run_load_##type(p, y, count);                                                                                     \
    run_write_##type(p, x, count);                                                                                    \
    run_read_##type(p, y, count);                                                                                     \
  }
int main(void)
{
  const int64_t page = sysconf(_SC_PAGESIZE);
  char *memory = mmap(NULL, (size_t)(2 * page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *end = memory + page;
  if (memory == MAP_FAILED || mprotect(end, (size_t)page, PROT_NONE))
    return 2;
  const real special[] = {0, -0.0, 1, -1, 1e-40, -1e-40, 0.5, 3, -88, 88.5, -100, -104, 1e30, INFINITY, -INFINITY, NAN};
  real x[16], y[16];
  memcpy(x, special, sizeof x);
  AT_THE_END(float32, float)
  AT_THE_END(float64, double)
  AT_THE_END(bfloat16, uint16_t)
  AT_THE_END(float16, uint16_t)
  for (int count = 1; count <= LANES; count++) {
    uint8_t *p = (uint8_t *)end - count, q[LANES];
    memset(p, 1, (size_t)count);
    run_bool(p, q, y, y, count);
    run_bool(q, p, y, y, count);
  }
  for (int64_t count = 0; count < 300; count++)
    for (uint64_t first = 0; first < 5; first++) {
      float *p = (float *)(void *)end - count;
      run_philox(p, count, ~0ull, ~0ull, first + (1ull << 34) - 150);
      if (count && *p != run_philox_number(~0ull, ~0ull, first + (1ull << 34) - 150))
        return 3;
    }
  memcpy(x, special, sizeof x);
  EVERY_FUNCTION
  return isnan(run_sum(x)) && isnan(run_largest(x)) && isnan(run_smallest(x)) ? 0 : LANES == 16 ? 1 : 0;
}
"""


def source(double: int, main: bool = False) -> str:
    folder = resources.files("pellucid.kernel") / "c"
    headers = [(folder / f"{name}.h").read_text() for name in ("vector", "math", "philox")]
    unary, memory = (
        [*POLYNOMIALS, *GELU, *EXACT, *LIBRARY],
        [f"MEMORY({n}, {element})" for n, (element, _) in STORAGE.items()],
    )
    parts = [f"#define DOUBLE {double}", *headers, DRIVER, *memory]
    parts += [*(f"UNARY({name})" for name in unary), *(f"BINARY({name})" for name in OF_TWO)]
    if main:
        calls = [f"run_{name}(x, y, 16);" for name in unary] + [f"run_{name}(x, x, y, 16);" for name in OF_TWO]
        parts.append(MAIN.replace("EVERY_FUNCTION", " ".join(calls)))
    return "\n".join(parts)


def build(path: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    path.with_suffix(".c").write_text(text)
    command = [str(COMPILER), *FLAGS, *flags, str(path.with_suffix(".c")), "-o", str(path), "-lm"]
    return subprocess.run(command, capture_output=True, text=True)


def instruction_sets() -> dict[str, list[str]]:
    """The widths of vectors that this machine can run."""
    sets = {"native": ["-march=native"]}
    cpu = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64":
        sets["sse2"] = ["-march=x86-64"]
        if cpu.exists() and {"avx2", "fma"} <= set(cpu.read_text().split()):
            sets["avx2"] = ["-march=native", "-mno-avx512f", "-mavx2", "-mfma"]
    return sets


class Driver:
    """The functions of the headers on arrays of one type, compiled for one instruction set."""

    def __init__(self, library: ctypes.CDLL, double: int) -> None:
        self.library = library
        self.lanes: int = library.lanes()
        self.dtype = np.dtype(np.float64 if double else np.float32)
        for name in REDUCTIONS:
            getattr(library, f"run_{name}").restype = ctypes.c_double if double else ctypes.c_float

    def run(self, name: str, *arguments: np.ndarray | int) -> float:
        converted = [a.ctypes if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in arguments]
        return getattr(self.library, f"run_{name}")(*(getattr(a, "_as_parameter_", a) for a in converted))

    def __call__(self, name: str, *arrays: np.ndarray) -> np.ndarray:
        count = len(arrays[0])
        padded = [np.concatenate([a, np.ones(-count % 16)]).astype(self.dtype) for a in arrays]
        result = np.empty_like(padded[0])
        self.run(name, *padded, result, len(result))
        return result[:count]


@pytest.fixture(autouse=True)
def no_warnings_of_limits() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(
    scope="module", params=[(0, name) for name in instruction_sets()] + [(1, n) for n in instruction_sets()]
)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    double, instructions = request.param
    path = tmp_path_factory.mktemp("headers") / "driver.so"
    built = build(path, source(double), "-shared", *instruction_sets()[instructions])
    assert built.returncode == 0, built.stderr[:4000]
    return Driver(ctypes.CDLL(str(path)), double)


def edges(dtype: np.dtype) -> np.ndarray:
    """Special numbers, and where functions overflow, underflow or change their formula, each with its neighbours."""
    info = np.finfo(dtype)
    places = [0, 1, 0.25, 0.5, 0.75, 0.875, 1.5, 2, math.log(2), math.log(2) / 2, float(info.tiny), float(info.eps)]
    places += [float(info.smallest_subnormal), float(info.max), 9.02, 19.1, 3.95, 5.95, 18, 38, 16.6, 36.7]
    places += [
        math.log(float(info.max)),
        -math.log(float(info.tiny)),
        -math.log(float(info.tiny) * float(info.eps)),
        746,
    ]
    around = np.array(places, dtype=dtype)
    for _ in range(3):
        around = np.concatenate([around, np.nextafter(around, dtype.type(np.inf)), np.nextafter(around, dtype.type(0))])
    return np.concatenate([around, -around, np.array([np.inf, -np.inf, np.nan], dtype=dtype)])


@functools.cache
def points(dtype: np.dtype) -> np.ndarray:
    """Every exponent with random fractions, and dense grids where the functions vary."""
    random = np.random.default_rng(7)
    if dtype == np.float32:
        exponents = np.repeat(np.arange(2 * 256, dtype=np.uint32), 500) << 23
        every = (exponents | random.integers(0, 1 << 23, len(exponents), dtype=np.uint32)).view(np.float32)
        grids = [np.linspace(-110, 100, 200_001), np.linspace(-3, 3, 100_001)]
    else:
        exponents = np.arange(2 * 2048, dtype=np.uint64) << np.uint64(52)
        every = (exponents | random.integers(0, 1 << 52, len(exponents), dtype=np.uint64)).view(np.float64)
        grids = [random.uniform(-750, 720, 1000), random.uniform(-40, 40, 2000), random.uniform(-2, 2, 3000)]
    return np.concatenate([edges(dtype), every, *(grid.astype(dtype) for grid in grids)])


EXACTLY = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "erf": mpmath.erf,
}


def in_float64(name: str, x: np.ndarray) -> np.ndarray:
    """A function in float64, with the right limits and signs of zeros; its own error is no more than about one unit."""
    tensor = torch.from_numpy(x.astype(np.float64))
    if name == "sigmoid":  # torch computes 1 / (1 + exp(-x)), which is 0 too early
        return torch.where(tensor < -40, tensor.exp(), tensor.sigmoid()).numpy()
    if name == "softplus":
        return np.logaddexp(0, x.astype(np.float64))
    return getattr(torch, name)(tensor).numpy()


@functools.cache
def reference(name: str, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The exact values at the points as sums of two float64."""
    x = points(dtype)
    high = in_float64(name, x)
    low = np.zeros_like(high)
    if dtype == np.float64:
        mpmath.mp.prec = 200
        # Elsewhere the values are limits, and right without mpmath.
        wide = np.abs(x) < np.inf if name.startswith("log") else np.abs(x) < 1000
        for i in np.flatnonzero(wide & np.isfinite(high) & (x != 0)):
            value = EXACTLY[name](mpmath.mpf(float(x[i])))
            high[i] = float(value)
            low[i] = float(value - mpmath.mpf(float(high[i])))
    return high, low


def units(result: np.ndarray, high: np.ndarray, low: np.ndarray | float = 0.0) -> np.ndarray:
    """The error in units in the last place of the exact value; infinite where NaN, infinity or a sign of 0 differs."""
    info = np.finfo(result.dtype)
    rounded = high.astype(result.dtype)
    _, exponent = np.frexp(high)
    unit = np.ldexp(1.0, np.maximum(exponent, info.minexp + 1) - info.nmant - 1)
    error = np.abs((result.astype(np.float64) - high) - low) / unit
    same = (result == rounded) & ((high != 0) | (np.signbit(result) == np.signbit(high)))
    special = ~np.isfinite(rounded) | ~np.isfinite(result) | (high == 0)
    return np.where(special, np.where(same | (np.isnan(rounded) & np.isnan(result)), 0.0, np.inf), error)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_function_is_right_to_two_units(driver: Driver, name: str) -> None:
    x = points(driver.dtype)
    error = units(driver(name, x), *reference(name, driver.dtype))
    worst = error.argmax()
    assert error[worst] <= 2, f"{name}({x[worst]!r}): {error[worst]} units"


def exact_gelu(name: str, x: np.ndarray) -> np.ndarray:
    """gelu or its slope in float64, of mpmath."""
    mpmath.mp.prec = 100
    numbers = [mpmath.mpf(float(number)) for number in x]
    values = {
        "gelu": lambda number: number * mpmath.ncdf(number),
        "gelu_slope": lambda number: mpmath.ncdf(number) + number * mpmath.npdf(number),
    }
    return np.array([float(values[name](number)) for number in numbers])


@pytest.mark.parametrize("name", GELU)
def test_gelu_is_right_in_its_left_tail_too(driver: Driver, name: str) -> None:
    """In float64 to a part of 1, as torch's; in float32 to units but where the slope is 0 and past -5."""
    x = np.concatenate([np.linspace(-15, 15, 3001), np.linspace(-1, 1, 801), [1e-30, -1e-30, 1e30, -1e30, 0.0, -0.0]])
    x = x.astype(driver.dtype)
    result, expected = driver(name, x), exact_gelu(name, x)
    error = np.abs(result - expected)
    if driver.dtype == np.float64:
        allowed = 1e-15 * np.maximum(np.abs(x), 1)
    else:
        unit = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
        if name == "gelu":
            allowed = 3 * unit * (1 + np.where(x < 0, x.astype(np.float64) ** 2, 0)) + 2e-12 * (x < -5)
        else:
            allowed = 6 * unit + 8e-8 * (np.abs(x + 0.7518) < 0.5)
        allowed += 1e-36 * (x < -12.9)
    worst = (error / np.maximum(allowed, 1e-300)).argmax()
    assert (error <= allowed).all(), f"{name}({x[worst]!r}): {result[worst]!r}, {expected[worst]!r}"


@pytest.mark.parametrize("name", GELU)
def test_gelu_is_no_further_off_than_that_of_torch(driver: Driver, name: str) -> None:
    """In float32, in whose left tail torch has only what is left of 1 - 1."""
    if driver.dtype == np.float64:
        pytest.skip("computed as torch computes it")
    x = np.linspace(-12, -2, 2001, dtype=np.float32)
    ours, exact = driver(name, x), exact_gelu(name, x)
    tensor = torch.from_numpy(x).requires_grad_()
    value = torch.nn.functional.gelu(tensor)
    theirs = (value if name == "gelu" else torch.autograd.grad(value.sum(), tensor)[0]).detach().numpy()
    for low, high in ((-12, -5), (-5, -4), (-4, -3), (-3, -2)):
        part = (x >= low) & (x <= high)
        assert np.abs(ours - exact)[part].max() < np.abs(theirs - exact)[part].max(), (low, high)


def test_gelu_at_the_limits(driver: Driver) -> None:
    """As torch's: 0 keeps its sign, and what is infinite times 0 is NaN."""
    x = np.array([0.0, -0.0, -1e30, np.inf, -np.inf, np.nan], driver.dtype)
    value = driver("gelu", x)
    np.testing.assert_array_equal(value, [0, 0, 0, np.inf, np.nan, np.nan])
    np.testing.assert_array_equal(np.signbit(value[:3]), [False, True, True])
    np.testing.assert_array_equal(driver("gelu_slope", x), [0.5, 0.5, 0, np.nan, np.nan, np.nan])


def test_functions_stay_within_their_limits(driver: Driver) -> None:
    x = points(driver.dtype)
    x = x[~np.isnan(x)]
    assert np.abs(driver("tanh", x)).max() == 1
    assert np.abs(driver("erf", x)).max() == 1
    sigmoid = driver("sigmoid", x)
    assert (sigmoid.min(), sigmoid.max()) == (0, 1)
    for name in ("tanh", "erf"):
        np.testing.assert_array_equal(driver(name, -x), -driver(name, x))


@pytest.mark.parametrize("name", EXACT)
def test_exact_function(driver: Driver, name: str) -> None:
    x = np.concatenate([points(driver.dtype), np.arange(-20, 20) / 4]).astype(driver.dtype)
    roots = {"sqrt": np.sqrt(x), "rsqrt": 1 / np.sqrt(x)}  # torch may take them from a library that rounds otherwise
    expected = roots[name] if name in roots else getattr(torch, name)(torch.from_numpy(x)).numpy()
    result = driver(name, x)
    np.testing.assert_array_equal(result, expected)
    if name not in ("sign", "relu"):  # whose zero has any sign
        finite = ~np.isnan(x) & ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("name", LIBRARY)
def test_library_function(driver: Driver, name: str) -> None:
    x = np.concatenate([edges(driver.dtype), np.linspace(-5, 5, 1001), np.linspace(-1, 1, 1001)]).astype(driver.dtype)
    wide = x.astype(np.float64)
    result = driver(name, x)
    # numpy's where it has one: torch's sinh overflows too early.
    expected = getattr(np, name)(wide) if hasattr(np, name) else getattr(torch, name)(torch.from_numpy(wide)).numpy()
    if driver.dtype == np.float32:
        assert units(result, expected).max() <= 2
    else:  # two libraries, each good to a few units
        np.testing.assert_allclose(result, expected, rtol=2e-15, atol=1e-307)


@pytest.mark.parametrize("name", OF_TWO)
def test_function_of_two(driver: Driver, name: str) -> None:
    special = np.array([0.0, -0.0, 1, -1, 2, -2.5, 3, 0.5, 1e-3, 7.25, np.inf, -np.inf, np.nan], driver.dtype)
    random = np.random.default_rng(5).uniform(-9, 9, (2, 1000)).astype(driver.dtype)
    a, b = (np.concatenate([grid.ravel(), r]) for grid, r in zip(np.meshgrid(special, special), random, strict=True))
    wide = torch.from_numpy(a.astype(np.float64)), torch.from_numpy(b.astype(np.float64))
    result, expected = driver(name, a, b), getattr(torch, name)(*wide).numpy()
    if driver.dtype == np.float32 and name not in ("maximum", "minimum"):
        assert units(result, expected).max() <= 2
    else:
        np.testing.assert_allclose(result, expected, rtol=0 if name in ("maximum", "minimum", "fmod") else 1e-15)


def test_reductions(driver: Driver) -> None:
    lanes = driver.lanes
    x = np.random.default_rng(3).permutation(lanes).astype(driver.dtype) - 3
    assert [driver.run(name, x) for name in ("sum", "largest", "smallest")] == [x.sum(), x.max(), x.min()]
    assert driver.run("multiplied", 2**x) == 2 ** x.sum()
    for i in range(lanes):
        y = x.copy()
        y[i] = 100
        assert driver.run("largest", y) == 100
        y[i] = -100
        assert driver.run("smallest", y) == -100
        y[i] = np.nan
        assert all(math.isnan(driver.run(name, y)) for name in REDUCTIONS)


def patterns(dtype: torch.dtype, real: np.dtype) -> torch.Tensor:
    """Every number of a type of 16 bits, or many numbers and the edges of both types."""
    if dtype.itemsize == 2:
        return torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    numbers = np.concatenate([points(np.dtype(np.float32)), edges(np.dtype(np.float64))])
    return torch.from_numpy(numbers.astype(np.float64)).to(dtype)


def raw(stored: torch.Tensor) -> np.ndarray:
    return stored.view(torch.uint16).numpy() if stored.dtype.itemsize == 2 else stored.numpy()


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    known = ~expected.isnan()
    assert torch.equal(torch.signbit(result[known]), torch.signbit(expected[known]))


@pytest.mark.parametrize("storage", STORAGE)
def test_read_and_write_round_as_torch(driver: Driver, storage: str) -> None:
    dtype, real = STORAGE[storage][1], torch.from_numpy(np.empty(0, driver.dtype)).dtype
    stored = patterns(dtype, driver.dtype)
    expected = stored.to(real).numpy()
    result = np.empty(len(stored), driver.dtype)
    driver.run(f"read_{storage}", raw(stored), result, len(result))
    assert_same(torch.from_numpy(result), torch.from_numpy(expected))

    # Every number of the type, the middle to the next one, and what is next to that; then all kinds of numbers.
    wide = stored.to(torch.float64).numpy()
    middle = (wide[1:] / 2 + wide[:-1] / 2).astype(driver.dtype)
    beside = [np.nextafter(middle, driver.dtype.type(limit)) for limit in (np.inf, -np.inf)]
    many = points(np.dtype(np.float32)).astype(driver.dtype)
    x = np.concatenate([result, middle, *beside, many, edges(driver.dtype)])
    written = torch.zeros(len(x), dtype=dtype)
    driver.run(f"write_{storage}", raw(written), x, len(x))
    assert_same(written, torch.from_numpy(x).to(dtype))


@pytest.mark.parametrize("storage", STORAGE)
def test_vectors_and_their_parts(driver: Driver, storage: str) -> None:
    dtype, lanes = STORAGE[storage][1], driver.lanes
    values = torch.tensor([math.nan, -0.0, math.inf, 1e-6, -3.14159, 65519, 65520, 1e-40], dtype=torch.float64)
    values = torch.cat([values, torch.linspace(-9, 9, 3 * lanes)]).to(dtype)
    for start in range(len(values) - lanes):
        for count in range(1, lanes + 1):
            result = np.full(lanes, 7, driver.dtype)
            driver.run(f"load_{storage}", raw(values)[start:], result, count)
            expected = torch.zeros(lanes, dtype=dtype)
            expected[:count] = values[start : start + count]
            assert_same(torch.from_numpy(result), expected.to(torch.from_numpy(result).dtype))

            memory = torch.full((lanes + 2,), 5, dtype=dtype)
            x = np.random.default_rng(start).normal(size=lanes).astype(driver.dtype)
            driver.run(f"store_{storage}", raw(memory)[1:], x, count)
            expected = torch.full((lanes + 2,), 5, dtype=dtype)
            expected[1 : count + 1] = torch.from_numpy(x).to(dtype)[:count]
            assert_same(memory, expected)
        copy = torch.full((lanes,), 5, dtype=dtype)
        driver.run(f"constant_{storage}", raw(values)[start:], raw(copy))
        assert copy[-1] == 5
        if dtype != torch.float64:
            assert_same(copy[:-1], values[start : start + lanes - 1])


def test_masks(driver: Driver) -> None:
    lanes = driver.lanes
    stored = np.random.default_rng(1).integers(0, 2, 4 * lanes, dtype=np.uint8)
    for count in range(1, lanes + 1):
        numbers, chosen = np.empty(lanes, driver.dtype), np.empty(lanes, driver.dtype)
        again = np.full(lanes + 1, 9, np.uint8)
        driver.run("bool", stored[count:], again, numbers, chosen, count)
        expected = np.where(np.arange(lanes) < count, stored[count : count + lanes], 0)
        np.testing.assert_array_equal(numbers, expected)
        np.testing.assert_array_equal(chosen, np.where(expected, 2, 3))
        np.testing.assert_array_equal(again, [*expected[:count], *[9] * (lanes + 1 - count)])


SEEDS_AND_STREAMS = [
    (0, 0),
    (12345678901, 77),
    (2**63 + 5, 2**64 - 1),
    (2**64 - 1, 2**32 - 1),
    (-3, 2**33),
    (2**32, 2**63),
]
BORDER = 2**34  # elements whose blocks have the same upper word


@pytest.mark.parametrize(("seed", "stream"), SEEDS_AND_STREAMS)
def test_random_numbers_are_those_of_uniform(driver: Driver, seed: int, stream: int) -> None:
    for first in (0, 1, 2, 3, 4, 63, BORDER - 11, BORDER - 128, BORDER - 131, 6 * BORDER - 998, 2**50 + 2):
        expected = uniform((4099,), seed, stream=stream, offset=first).numpy()
        for count in (*range(300), 510, 512, 1001, 1024, 4099):
            result = np.full(count + 1, 7, np.float32)
            driver.library.run_philox(
                result.ctypes._as_parameter_, ctypes.c_int64(count), *map(ctypes.c_uint64, (seed, stream, first))
            )
            assert result[count] == 7
            np.testing.assert_array_equal(result[:count], expected[:count], f"{count} from {first}")


@pytest.mark.parametrize(("seed", "stream"), SEEDS_AND_STREAMS)
def test_random_number_alone_is_the_same(driver: Driver, seed: int, stream: int) -> None:
    driver.library.run_philox_number.restype = ctypes.c_float
    for first in (0, 5, BORDER - 6, 2**50 + 2):
        expected = uniform((12,), seed, stream=stream, offset=first)
        alone = [driver.library.run_philox_number(*map(ctypes.c_uint64, (seed, stream, first + i))) for i in range(12)]
        assert alone == expected.tolist()


@pytest.mark.parametrize("double", [0, 1])
@pytest.mark.parametrize("instructions", instruction_sets())
def test_nothing_is_undefined_or_touched_behind_the_end(tmp_path: Path, double: int, instructions: str) -> None:
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1"]
    if build(tmp_path / "probe", "int main(void) { return 0; }", *sanitizers).returncode:
        pytest.skip("the compiler has no sanitizers")
    program = tmp_path / "program"
    built = build(program, source(double, main=True), *sanitizers, *instruction_sets()[instructions])
    assert built.returncode == 0, built.stderr[:4000]
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[:4000]
