/* head: codes of shape (3, 2), row-major; value = (code - E009_HEAD_ZERO) / 2^E009_HEAD_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E009_HEAD_H
#define CHIPFIT_GOLDEN_E009_HEAD_H
#include <stdint.h>
#define E009_HEAD_SAMPLES 3
#define E009_HEAD_SIZE 6
#define E009_HEAD_LOG2_SCALE 4
#define E009_HEAD_ZERO 0
static const int8_t e009_head[E009_HEAD_SIZE] = {
  -5, 5, -5, 5, -5, 4
};
#endif
