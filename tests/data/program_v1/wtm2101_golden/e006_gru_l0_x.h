/* gru.l0.x: codes of shape (3, 2, 4), row-major; value = (code - E006_GRU_L0_X_ZERO) / 2^E006_GRU_L0_X_LOG2_SCALE */
#ifndef CHIPFIT_GOLDEN_E006_GRU_L0_X_H
#define CHIPFIT_GOLDEN_E006_GRU_L0_X_H
#include <stdint.h>
#define E006_GRU_L0_X_SAMPLES 3
#define E006_GRU_L0_X_SIZE 24
#define E006_GRU_L0_X_LOG2_SCALE 5
#define E006_GRU_L0_X_ZERO 0
static const uint8_t e006_gru_l0_x[E006_GRU_L0_X_SIZE] = {
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0,
  2, 0, 0, 2
};
#endif
