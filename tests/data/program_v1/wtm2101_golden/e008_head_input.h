/* head.input: codes of shape (3, 3), row-major; value = (code - E008_HEAD_INPUT_ZERO) / 2^E008_HEAD_INPUT_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E008_HEAD_INPUT_H
#define CHIPFIT_GOLDEN_E008_HEAD_INPUT_H
#include <stdint.h>
#define E008_HEAD_INPUT_SAMPLES 3
#define E008_HEAD_INPUT_SIZE 9
#define E008_HEAD_INPUT_LOG2_SCALE 5
#define E008_HEAD_INPUT_ZERO 0
static const int16_t e008_head_input[E008_HEAD_INPUT_SIZE] = {
  15, 12, 10, 15, 12, 10, 15, 12, 9
};
#endif
