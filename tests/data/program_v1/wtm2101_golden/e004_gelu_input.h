/* gelu.input: codes of shape (3, 2, 2, 2), row-major; value = (code - E004_GELU_INPUT_ZERO) / 2^E004_GELU_INPUT_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E004_GELU_INPUT_H
#define CHIPFIT_GOLDEN_E004_GELU_INPUT_H
#include <stdint.h>
#define E004_GELU_INPUT_SAMPLES 3
#define E004_GELU_INPUT_SIZE 24
#define E004_GELU_INPUT_LOG2_SCALE 5
#define E004_GELU_INPUT_ZERO 0
static const int8_t e004_gelu_input[E004_GELU_INPUT_SIZE] = {
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0,
  4, 1, 0, 2
};
#endif
