/* shifted.input: codes of shape (3, 2, 4, 4), row-major; value = (code - E002_SHIFTED_INPUT_ZERO) / 2^E002_SHIFTED_INPUT_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E002_SHIFTED_INPUT_H
#define CHIPFIT_GOLDEN_E002_SHIFTED_INPUT_H
#include <stdint.h>
#define E002_SHIFTED_INPUT_SAMPLES 3
#define E002_SHIFTED_INPUT_SIZE 96
#define E002_SHIFTED_INPUT_LOG2_SCALE 5
#define E002_SHIFTED_INPUT_ZERO 32
static const uint8_t e002_shifted_input[E002_SHIFTED_INPUT_SIZE] = {
  28, 34, 58, 34, 24, 42, 30, 44, 44, 16, 44, 34, 30, 40, 30, 40, 44, 40, 28, 46,
  44, 34, 32, 36, 36, 60, 32, 34, 40, 42, 62, 42, 20, 58, 36, 32, 30, 36, 46, 46,
  40, 30, 36, 20, 30, 32, 42, 42, 52, 12, 42, 28, 46, 58, 42, 40, 34, 50, 20, 32,
  50, 64, 50, 42, 58, 0, 30, 32, 20, 48, 2, 30, 52, 36, 48, 14, 42, 34, 30, 42,
  18, 38, 44, 24, 56, 32, 80, 26, 8, 36, 28, 34, 12, 12, 24, 32
};
#endif
