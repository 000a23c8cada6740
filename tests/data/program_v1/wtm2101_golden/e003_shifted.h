/* shifted: codes of shape (3, 2, 4, 4), row-major; value = (code - E003_SHIFTED_ZERO) / 2^E003_SHIFTED_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E003_SHIFTED_H
#define CHIPFIT_GOLDEN_E003_SHIFTED_H
#include <stdint.h>
#define E003_SHIFTED_SAMPLES 3
#define E003_SHIFTED_SIZE 96
#define E003_SHIFTED_LOG2_SCALE 4
#define E003_SHIFTED_ZERO 0
static const int8_t e003_shifted[E003_SHIFTED_SIZE] = {
  -6, -8, -12, -6, -6, -10, -10, -9, -9, -1, -11, -10, -8, -7, -1, -7, -2, -3, -9, -4,
  0, -5, -1, -6, -6, 0, -5, -2, -2, -5, -5, -5, -4, -17, -7, -12, -6, -2, -7, -8,
  -10, -4, -14, -10, -4, 0, -5, -7, 0, -7, -4, -1, -2, -6, -7, -7, -4, -3, -1, 2,
  -3, -6, -7, -6, -15, -8, -6, -13, -2, -11, 6, -12, -18, -9, -12, -9, -17, -17, -13, -10,
  -8, 8, -2, 0, -1, -6, 2, 0, -4, -3, -6, 4, -2, 1, 0, -4
};
#endif
