/* gru.l0: codes of shape (3, 2, 3), row-major; value = (code - E007_GRU_L0_ZERO) / 2^E007_GRU_L0_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E007_GRU_L0_H
#define CHIPFIT_GOLDEN_E007_GRU_L0_H
#include <stdint.h>
#define E007_GRU_L0_SAMPLES 3
#define E007_GRU_L0_SIZE 18
#define E007_GRU_L0_LOG2_SCALE 7
#define E007_GRU_L0_ZERO 0
static const int8_t e007_gru_l0[E007_GRU_L0_SIZE] = {
  41, 34, 23, 59, 47, 38, 41, 34, 23, 59, 47, 38, 41, 34, 22, 59, 47, 37
};
#endif
