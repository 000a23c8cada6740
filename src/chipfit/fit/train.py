"""Training in stages, each from the weights that the one before left (manual section 2.7)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from chipfit.errors import InvalidValueError
from chipfit.modes import set_mode
from chipfit.vendor import vendors


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: Its name in tables and file names.
        mode: Mode of the chip layers, 'float', 'quant' or 'nat'.
        epochs: Passes over the data.
        learning_rate: Peak of a one-cycle schedule.
        level: Noise level of 'nat' at the end of the ramp.
        ramp: Share of the epochs over which the level rises from a small one; 0 starts at the full level.
        weight_decay: AdamW weight decay.

    Raises:
        InvalidValueError: fewer than one epoch, or a ramp outside 0 to 1.

    Example:
        >>> nat = Stage("NAT", "nat", epochs=4, learning_rate=1e-3, level=6.0, ramp=0.5)
        >>> [nat.level_at(epoch) for epoch in range(4)]
        [3.0, 6.0, 6.0, 6.0]
    """

    name: str
    mode: str
    epochs: int
    learning_rate: float
    level: float = 0.0
    ramp: float = 0.0
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InvalidValueError("a stage needs epochs", given=self.epochs, allowed="1 or more", where=self.name)
        if not 0 <= self.ramp <= 1:
            raise InvalidValueError("ramp is a share", given=self.ramp, allowed="0 to 1", where=self.name)

    def level_at(self, epoch: int) -> float:
        """Noise level of an epoch, counted from 0."""
        rising = self.ramp * self.epochs
        return self.level if epoch + 1 >= rising else self.level * (epoch + 1) / rising


class FitModule(lightning.LightningModule):
    """A classifier in one stage of the recipe, for any Lightning trainer.

    Args:
        net: Network with chip layers; for a stage in mode 'float' any network.
        stage: What to train it as.
        augment: Applied to every training batch, or None.
        loss: Function of outputs and targets.
    """

    def __init__(
        self,
        net: nn.Module,
        stage: Stage,
        augment: Callable[[Tensor], Tensor] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        self.net, self.stage, self.augment, self.loss = net, stage, augment, loss
        self.vendors = [v for v in vendors().values() if any(v.owns(module) for module in net.modules())]

    def on_train_epoch_start(self) -> None:
        """Put the network into the stage's mode, at this epoch's noise level."""
        level = self.stage.level_at(self.current_epoch) if self.stage.mode == "nat" else None
        if self.stage.mode != "float" or self.vendors:
            set_mode(self.net, self.stage.mode, level)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        x, target = batch
        return self.loss(self.net(self.augment(x) if self.augment else x), target)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """What the chip's vendor ends a step with."""
        for vendor in self.vendors:
            if vendor.fitting is not None:
                vendor.fitting.after_step(self.net)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule over the stage."""
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, self.stage.learning_rate, weight_decay=self.stage.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.stage.learning_rate, total_steps=steps, pct_start=0.2
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _OnEpoch(lightning.Callback):
    def __init__(self, progress: Callable[[], None]) -> None:
        self.progress = progress

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.progress()


def fit(
    net: nn.Module,
    loader: DataLoader[Any],
    stage: Stage,
    *,
    augment: Callable[[Tensor], Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    progress: Callable[[], None] = lambda: None,
    **trainer_options: Any,
) -> nn.Module:
    """Train a network for one stage.

    Args:
        net: Network with chip layers, or for a stage in mode 'float' any network; trained in place.
        loader: Batches `(input, target)`.
        stage: What to train it as.
        augment: Applied to every training batch, or None.
        loss: Function of outputs and targets.
        progress: Called after each epoch.
        **trainer_options: For `lightning.Trainer`, for instance `accelerator`, `devices`, `callbacks`, `logger`.

    Returns:
        The same network, in the stage's mode.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options |= trainer_options
    callbacks = [*(options.pop("callbacks", None) or []), _OnEpoch(progress)]
    net.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # lightning's own use of a deprecated torch function
        warnings.filterwarnings("ignore", message=".*The number of training batches.*")
        trainer = lightning.Trainer(max_epochs=stage.epochs, callbacks=callbacks, **options)
        trainer.fit(FitModule(net, stage, augment, loss), loader)
    return net
