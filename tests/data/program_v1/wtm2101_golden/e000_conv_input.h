/* conv.input: codes of shape (3, 1, 4, 4), row-major; value = (code - E000_CONV_INPUT_ZERO) / 2^E000_CONV_INPUT_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E000_CONV_INPUT_H
#define CHIPFIT_GOLDEN_E000_CONV_INPUT_H
#include <stdint.h>
#define E000_CONV_INPUT_SAMPLES 3
#define E000_CONV_INPUT_SIZE 48
#define E000_CONV_INPUT_LOG2_SCALE 5
#define E000_CONV_INPUT_ZERO 0
static const int16_t e000_conv_input[E000_CONV_INPUT_SIZE] = {
  41, 9, -37, 10, 12, 25, 18, -13, -36, 23, 9, 30, -19, -30, 17, -7, 62, -15, 42, 5,
  14, 28, -6, -13, -13, 47, 7, 1, -18, -15, -31, -31, -28, 36, 13, -6, -29, -100, 36, -51,
  -37, -52, -62, -18, 8, 5, -45, -71
};
#endif
