// What a call of nested loops is given: a formula over axes instead of time.

#define CHUNK 4096 // columns whose sum is made by itself: a long sum would swallow small terms

struct nest {
  const int64_t *sizes;      // of the axes
  const int64_t *strides;    // of every operand: in elements along every axis, then between the parts of a total
  void *const *places;       // of every operand
  const double *numbers;
  const int64_t *offsets;    // of every operand that is random: its first element in the sequence
  uint64_t seed, stream;     // of the random draws
  int64_t rows;              // the product of the axes outside
  int64_t tiles, tile;       // the columns are cut into tiles of so many, where they are not reduced
  int64_t parts;             // of the work; one thread takes one at a time, and each has its part of a total
  int64_t scratch;           // bytes of a thread's scratch
  char *work;
  struct threads threads;
};
