/* gelu: codes of shape (3, 2, 2, 2), row-major; value = (code - E005_GELU_ZERO) / 2^E005_GELU_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E005_GELU_H
#define CHIPFIT_GOLDEN_E005_GELU_H
#include <stdint.h>
#define E005_GELU_SAMPLES 3
#define E005_GELU_SIZE 24
#define E005_GELU_LOG2_SCALE 4
#define E005_GELU_ZERO 0
static const int8_t e005_gelu[E005_GELU_SIZE] = {
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0,
  1, 0, 0, 1
};
#endif
