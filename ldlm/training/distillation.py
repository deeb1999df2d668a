"""Progressive distillation of a denoiser: its rounds, its state, and one step of it. The loop is in `loop.py`.

Latent encoder and decoders are frozen. In each round a student learns to draw with half as many evaluations as its
teacher (`ldlm.model.distillation`). It starts from the teacher's weights, and its averaged weights become the teacher
of the next round.

Shape letters: CONTRIBUTING.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldlm import noise
from ldlm.config import DistilledConfig, halvings
from ldlm.features.batch import Batch
from ldlm.features.store import Split
from ldlm.model import distillation
from ldlm.model.denoiser import DiT
from ldlm.model.diffusion import Schedule
from ldlm.model.distillation import Denoise, Lesson, draw_steps
from ldlm.model.joint import JointModel
from ldlm.model.layers import compile_blocks, recompute_activations
from ldlm.model.objective import at_least_float32, row_loss
from ldlm.model.prefix import Prefix, draw_lengths
from ldlm.runtime import ALONE, World
from ldlm.training import heldout
from ldlm.training.checkpoint import Checkpoint
from ldlm.training.ema import EMA
from ldlm.training.joint import compute_of
from ldlm.training.learner import Bound, Learner, Step, parallel
from ldlm.training.optim import learning_rate, optimizer

Guide = Callable[[Denoise], Denoise]


@dataclass(frozen=True, eq=False)
class Round:
    """Training steps in which a student learns to replace two steps of its teacher with one."""

    begins: int  # training steps before its first
    steps: int
    grid: Tensor  # the teacher's, (2E + 1,) float64

    @property
    def evaluations(self) -> int:
        """Steps E of the student's grid, one evaluation each."""
        return (len(self.grid) - 1) // 2


def rounds(config: DistilledConfig, grid: Tensor) -> list[Round]:
    """The rounds in order; `grid` is that of the first teacher, (start + 1,)."""
    settings = config.distillation
    assert settings.start is not None and settings.steps is not None
    count = halvings(settings.start, settings.evaluations)
    return [Round(number * settings.steps, settings.steps, grid[:: 2**number]) for number in range(count)]


@dataclass(frozen=True, kw_only=True)
class DistillStep(Step):
    """A launched step of a student, with the losses of this process by row."""

    evaluations: int
    l_distill_B: Tensor


@dataclass(kw_only=True)
class DistillState(Learner[DistillStep]):
    """A student in training among the frozen parts of its run, and its teacher."""

    shown: ClassVar[tuple[str, ...]] = ("evaluations", "l_distill")

    config: DistilledConfig
    model: JointModel  # its denoiser is the student
    teacher: DiT
    guide: Guide  # adds guidance to the first teacher
    rounds: list[Round]
    timesteps: Mapping[str, Any]  # state of the run's timestep sampler, whose F(t) defines the `learned` grid

    @property
    def round(self) -> Round:
        """The round of the last step taken; before any step, the first round."""
        return self._round_of(max(0, self.step - 1))

    def _round_of(self, step: int) -> Round:
        return [one for one in self.rounds if one.begins <= step][-1]

    def enter_round(self) -> Round:
        """The round of the next step; when a later round begins, the averaged student becomes its teacher."""
        entered = self._round_of(self.step)
        if self.step == entered.begins > 0:
            self.ema.put_into(self.model, ["denoiser"])
            self.teacher.load_state_dict(self.model.denoiser.state_dict())
            self.optimizer.state.clear()
        return entered

    @property
    def binds_steps(self) -> Bound | None:
        """None: the steps of a round are a setting, which cannot change."""
        return None

    @cached_property
    def student(self) -> Student:
        """The student as a module that computes its loss."""
        return Student(self.model)

    def lesson(
        self, of: Round, h_BLD: Tensor, z_0_BNC: Tensor, eps_BNC: Tensor, i_B: Tensor, k_B: Tensor | None
    ) -> Lesson:
        """The teacher's two steps on latents in a round, for the student's i-th times and prefixes of k states."""
        denoise: Denoise = partial(estimate, self.teacher, self.model.prefix(h_BLD, k_B, self.teacher))
        if of.begins == 0:
            denoise = self.guide(denoise)
        diffusion, grid = self.config.diffusion, of.grid.to(z_0_BNC.device)
        inputs, reads = (z_0_BNC, eps_BNC, grid, i_B), diffusion.self_conditioned
        return distillation.lesson(Schedule.of(diffusion), denoise, *inputs, self_conditioned=reads)

    def figures(self, step: DistillStep) -> dict[str, float]:
        """Figures of a step over all processes."""
        mine = self.world.sum(step.l_distill_B.double().mean().cpu()) / self.world.size
        learning = {"lr": step.lr, "gradient_norm": step.gradient_norm.item()}
        return {"evaluations": step.evaluations, "l_distill": mine.item(), **learning}

    def losses_of(self, step: DistillStep) -> tuple[dict[str, Tensor], Tensor]:
        """The loss, by name and by row."""
        return {"l_distill": step.l_distill_B}, step.l_distill_B

    @property
    def remedy(self) -> str:
        """Advice to a user whose losses are not finite."""
        return f"in another --output, lower --lr (it is {self.config.optimizer.lr})"

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors of a checkpoint by file, the teacher's among them."""
        return {**super().tensors(), "teacher": self.teacher.state_dict()}

    def facts(self) -> dict[str, Any]:
        """State beside the tensors, as JSON."""
        return {**super().facts(), "timesteps": self.timesteps, "evaluations": self.round.evaluations}

    def load(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint."""
        super().load(saved)
        self.teacher.load_state_dict(saved.tensors("teacher"))


def start_distillation(
    config: DistilledConfig,
    model: JointModel,
    grid: Tensor,
    timesteps: Mapping[str, Any],
    *,
    guide: Guide,
    device: torch.device,
    world: World = ALONE,
) -> DistillState:
    """A distillation at step 0 of the run's `model`, whose denoiser becomes the student.

    `grid` is that of the first teacher, (start + 1,) float64, and `guide` adds guidance to a denoiser.
    """
    teacher = copy.deepcopy(model.denoiser).requires_grad_(False)
    model.requires_grad_(False)
    model.denoiser.requires_grad_(True)
    compute = compute_of(config, model, device)
    if compute.compiled:
        compile_blocks(model)
        compile_blocks(teacher)
    if config.recompute:
        recompute_activations(model.denoiser)
    state = DistillState(
        config=config,
        model=model,
        optimizer=optimizer(model.denoiser, config.optimizer),
        ema=EMA(model, config.optimizer.ema_decay),
        compute=compute,
        world=world,
        teacher=teacher,
        guide=guide,
        rounds=rounds(config, grid),
        timesteps=timesteps,
    )
    state.parallel = parallel(state.student, world)
    return state


class Student(nn.Module):
    """A student's loss as one module, for a data-parallel wrapper."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.denoiser = model.denoiser
        self.prefix = model.prefix

    def forward(self, taught: Lesson, h_BLD: Tensor, k_B: Tensor | None) -> Tensor:
        """‖x̂ − x̃‖² per row (B,), averaged over elements as in L_diff (Eq. 1)."""
        found = estimate(self.denoiser, self.prefix(h_BLD, k_B), taught.z_t, taught.t_B, taught.z_hat_prev)
        return row_loss(found, taught.x_tilde)


def estimate(network: DiT, prefix: Prefix | None, z_t: Tensor, t_B: Tensor, z_hat_prev: Tensor) -> Tensor:
    """ẑ_0 of a network that may see a prefix; None for no prefix."""
    made: Tensor = network(z_t, t_B.float(), z_hat_prev, prefix)
    return at_least_float32(made)


def distill_step(state: DistillState, batch: Batch) -> DistillStep:
    """Launch one optimiser step: encode, ask the teacher, forward, backward, clip, update, average."""
    entered = state.enter_round()
    done = state.step - entered.begins
    lr = learning_rate(done, entered.steps, state.config.optimizer)
    losses = [_backward(state, entered, part) for part in state.micro_batches(batch)]
    taken = state.update(batch, lr, done)
    return DistillStep(**vars(taken), evaluations=entered.evaluations, l_distill_B=torch.cat(losses))


def _backward(state: DistillState, entered: Round, batch: Batch) -> Tensor:
    """Add the gradient of one micro-batch; returns losses by row."""
    address: dict[str, Any] = {"seed": state.config.seed, "step": state.step, "rows_B": batch.index_B}
    i_B = draw_steps(**address, count=entered.evaluations).to(state.device, non_blocking=True)
    k_B = _prefixes(state, **address)
    rows_B = batch.index_B.to(state.device, non_blocking=True)
    eps_BNC = state.compute.normal(
        state.config.seed, "eps", rows_B.new_full((), state.step), rows_B, state.model.latent_shape
    )
    with torch.no_grad(), state.compute.autocast():
        h_BLD = state.model.states(batch.hidden_BLD, batch.tokens_BL)
        z_0_BNC = at_least_float32(state.model.latent_encoder(h_BLD))
        taught = state.lesson(entered, h_BLD, z_0_BNC, eps_BNC, i_B, k_B)
    with state.compute.autocast():
        loss_B: Tensor = (state.parallel or state.student)(taught, h_BLD, k_B)
    state.backward(loss_B.mean())
    return loss_B.detach()


def _prefixes(state: DistillState, *, seed: int, step: int, rows_B: Tensor) -> Tensor | None:
    """Lengths of the prefixes that the rows see; None if the denoiser takes none."""
    if state.model.denoiser.prefix is None:
        return None
    k_B = draw_lengths(seed=seed, step=step, rows_B=rows_B.cpu(), seq_len=state.model.shapes.seq_len)
    return k_B.to(state.device, non_blocking=True)


@torch.no_grad()
def evaluate(state: DistillState, split: Split) -> dict[str, Any]:
    """Figures of the student on held-out rows, as JSON: its loss, and its teacher's loss if used in its place.

    Row r is denoised at the student's time with index r modulo E, under the row's own noise.
    """
    config, taught_in, parts = state.config, state.round, list[Tensor]()
    size = min(state.rows_at_once, config.eval_rows)
    with state.compute.autocast():
        for row_B, h_BLD, z_0_BNC, _ in heldout.encoded(state.model, split, config.eval_rows, size, state.device):
            eps_BNC = noise.normal(heldout.SEED, "eps", 0, row_B, state.model.latent_shape)
            i_B, k_B = row_B % taught_in.evaluations, _prefixes(state, seed=heldout.SEED, step=0, rows_B=row_B)
            taught = state.lesson(taught_in, h_BLD, z_0_BNC, eps_BNC, i_B, k_B)
            prefix = state.model.prefix(h_BLD, k_B, state.teacher)
            of_teacher = estimate(state.teacher, prefix, taught.z_t, taught.t_B, taught.z_hat_prev)
            of_student = state.student(taught, h_BLD, k_B)
            parts.append(torch.stack([i_B.double(), of_student, row_loss(of_teacher, taught.x_tilde)]).cpu())
    i_B, student_B, teacher_B = torch.cat(parts, dim=1)
    by_step = [student_B[i_B == i] for i in range(taught_in.evaluations)]
    return {
        "split": split.name,
        "rows": len(i_B),
        "evaluations": taught_in.evaluations,
        "l_distill": student_B.mean().item(),
        "l_distill_teacher": teacher_B.mean().item(),
        "l_distill_by_step": [one.mean().item() if len(one) else None for one in by_step],
    }
