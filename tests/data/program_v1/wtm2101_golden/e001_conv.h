/* conv: codes of shape (3, 2, 4, 4), row-major; value = (code - E001_CONV_ZERO) / 2^E001_CONV_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E001_CONV_H
#define CHIPFIT_GOLDEN_E001_CONV_H
#include <stdint.h>
#define E001_CONV_SAMPLES 3
#define E001_CONV_SIZE 96
#define E001_CONV_LOG2_SCALE 4
#define E001_CONV_ZERO 0
static const int8_t e001_conv[E001_CONV_SIZE] = {
  -2, 1, 13, 1, -4, 5, -1, 6, 6, -8, 6, 1, -1, 4, -1, 4, 6, 4, -2, 7,
  6, 1, 0, 2, 2, 14, 0, 1, 4, 5, 15, 5, -6, 13, 2, 0, -1, 2, 7, 7,
  4, -1, 2, -6, -1, 0, 5, 5, 10, -10, 5, -2, 7, 13, 5, 4, 1, 9, -6, 0,
  9, 16, 9, 5, 13, -20, -1, 0, -6, 8, -15, -1, 10, 2, 8, -9, 5, 1, -1, 5,
  -7, 3, 6, -4, 12, 0, 24, -3, -12, 2, -2, 1, -10, -10, -4, 0
};
#endif
