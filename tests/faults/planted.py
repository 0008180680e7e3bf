"""Faults that tests must notice: where, the exact text, what it becomes, what that means, and which tests should see it.

A fault whose text is no longer found exactly once is refused aloud: write it again for the text as it is now.
"""

# ruff: noqa: E501

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """file: from the tree's root. old: its text, found once there. new: what is planted. means: in words. tests: files."""

    group: str
    file: str
    old: str
    new: str
    means: str
    tests: tuple[str, ...]


def _known(file: str, old: str, new: str, means: str, *tests: str) -> Fault:
    return Fault(
        "survived",
        f"diffcore/{file}" if "." in file and "/" not in file and file != "dvc.yaml" else file,
        old,
        new,
        means,
        _paths(tests),
    )


def _own(file: str, old: str, new: str, means: str, *tests: str) -> Fault:
    return Fault("own", file, old, new, means, _paths(tests))


def _paths(tests: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"tests/test_{test}.py" for test in tests)


SURVIVORS = (
    _known("fit.py", "_average(self.target, self.net, self.target_decay)", "_average(self.target, self.net, min(config.ema, (1 + self.step) / (10 + self.step)))", "the target's EMA has the evaluation's decay", "fit", "methods", "loop"),
    _known("fit.py", "_average(self.target, self.net, self.target_decay)", "_average(self.target, self.ema, self.target_decay)", "the target follows the averaged network", "fit", "methods", "loop"),
    _known("fit.py", "min(config.ema, (1 + self.step) / (10 + self.step))", "min(config.ema or 0.5, (1 + self.step) / (10 + self.step))", "ema 0 no longer gives the last weights", "fit", "loop", "clipping"),
    _known("fit.py", "nn.utils.clip_grads_with_norm_(self.net.parameters(), config.clip, norm)", "[p.grad.mul_(config.clip / norm) for p in self.net.parameters() if p.grad is not None]", "clipping scales small gradients up", "fit", "loop", "clipping"),
    _known("fit.py", "weight_decay=job.config.weight_decay", "weight_decay=0.0", "weight decay is dropped", "fit", "loop", "clipping"),
    _known("fit.py", "torch.autocast(self.accelerator.device.type, torch.bfloat16, self.half)", "torch.autocast(self.accelerator.device.type, torch.bfloat16, False)", "no autocast in the loss", "precision", "loop"),
    _known("fit.py", "self.masks.throw(self.job.seed, *words)", "self.masks.throw(self.job.seed)", "the same dropout mask at every step", "dropout", "loop", "fit"),
    _known("fit.py", 'generator=generator(*words, "guidance")', 'generator=generator(*words, "labels")', "guidance and label dropout share their dice", "fit", "guided", "loop"),
    _known("draw.py", "*self.words, word, count=self.count)", "*self.words, count=self.count)", "Draw.other gives the same numbers again", "draw", "methods"),
    _known("draw.py", "generator=generator(seed, role, i)) for i in indices", "generator=generator(seed, i)) for i in indices", "noises ignores its role: every step repeats the start's noise", "draw", "sampler", "sde"),
    _known("diffcore/methods/distribution_matching.py", "(_noised(roles, x0, draw)[1], noisy)", "(x0, noisy)", "the critic's heads see clean real images", "distribution_matching", "loop"),
    _known("diffcore/methods/distribution_matching.py", "(_noised(roles, x0, draw)[1], noisy)", '(_noised(roles, x0, draw.other("real"))[1], noisy)', "real images get other noise than the student's", "distribution_matching", "loop"),
    _known("denoiser.py", "self.inner.given(Condition(self.condition.labels)).features(x_t, t)", "self.inner.given(Condition()).features(x_t, t)", "features of a guided denoiser are those of the null class", "condition", "guided", "denoiser", "loop"),
    _known("search.py", "return 2 * np.concatenate([_discretised(", "return np.concatenate([_discretised(", "the decoder's cost is not doubled", "search"),
    _known("likelihood.py", 'generator(seed, "dequantise", i)', 'generator(seed, "dequantise", 0)', "one dequantisation for all images", "likelihood"),
    _known("likelihood.py", 'f"bound {k}"', '"bound"', "one noise for all steps of the bound", "likelihood"),
    _known("likelihood.py", "self.values.std() / math.sqrt(len(self.values))", "self.values.std()", "a standard error without sqrt(n)", "likelihood"),
    _known("draw.py", 'generator=generator(seed, "label", i)) for i in range(count)', 'generator=generator(seed, "label", i + count)) for i in range(count)', "a label depends on how many are asked", "draw", "quality"),
    _known("frontier.py", "(point.checkpoint, point.way, round(point.nfe, 6))", "(point.way, round(point.nfe, 6))", "the best of one way is mixed over checkpoints", "frontier"),
    _known("diffcore/solvers/dpm_solver.py", "trajectory.steps < FEW", "trajectory.steps <= FEW", "fifteen steps count as few", "orders", "solver", "diffusers_samplers"),
    _known("dvc.yaml", "data.limit, data.license, data.members,", "data.limit, data.license,", "the shard stage does not depend on data.members", "stages"),
)  # fmt: skip
"""What no test noticed when the suite was first attacked so."""

OWN = (
    _own("diffcore/angle.py", "return lift(d.cos(), z) * z - lift(d.sin(), z) * v", "return lift(d.cos(), z) * z + lift(d.sin(), z) * v", "a hop goes the other way", "angle"),
    _own("diffcore/angle.py", "first, second = d2.cos() * d1.sin() / whole, d2.sin() / whole", "first, second = d1.cos() * d2.sin() / whole, d1.sin() / whole", "compose takes the two hops in the wrong order", "angle"),
    _own("diffcore/angle.py", "return torch.where(lift(u, z) > 0, step, first)", "return step", "Heun's step to the data is no DDIM step", "angle", "methods"),
    _own("diffcore/schedule.py", "return -0.25 * t**2", "return -0.5 * t**2", "beta(t) is integrated wrongly", "schedule"),
    _own("diffcore/schedule.py", "return (high - 1 + within) / len(self.betas)", "return (high + within) / len(self.betas)", "a discrete schedule's time is off by one step", "schedule"),
    _own("diffcore/denoiser.py", "return Prediction(c * z - s * v, s * z + c * v, level)", "return Prediction(c * z + s * v, s * z + c * v, level)", "a velocity is read with the wrong sign", "denoiser"),
    _own("diffcore/denoiser.py", "torch.lerp(without, with_, g)", "torch.lerp(with_, without, g)", "guidance leads away from the class", "condition"),
    _own("diffcore/denoiser.py", "self.schedule.level(t, x_t), 2 * belief.cost)", "self.schedule.level(t, x_t), belief.cost)", "a guided call counts as one", "condition", "guided"),
    _own("diffcore/denoiser.py", "torch.where(labels < 0, self.classes, labels)", "torch.where(labels < 0, 0, labels)", "no class is taken for the first class", "condition"),
    _own("diffcore/denoiser.py", "torch.full_like(known.labels, -1) if known.negative is None else known.negative", "torch.full_like(known.labels, -1)", "the negative class is forgotten", "condition", "recipe"),
    _own("diffcore/draw.py", 'cells = torch.randperm(count, generator=dice)', 'cells = torch.arange(count)', "stratified numbers come in order, not shuffled", "draw", "methods", "fit"),
    _own("diffcore/feed.py", 'generator(self.seed, "images", epoch, number)', 'generator(self.seed, "images", number)', "every epoch has the same order", "feed"),
    _own("diffcore/feed.py", 'generator=generator(seed, "flip", step)) < 0.5', 'generator=generator(seed, "flip")) < 0.5', "every step mirrors the same places", "feed"),
    _own("diffcore/feed.py", "labels[here] = opened.labels[index[here]]", "labels[here] = opened.labels[np.sort(index[here])]", "streamed labels belong to other images", "feed"),
    _own("diffcore/feed.py", "* 127.5).round().clamp(0, 255)", "* 127.5).clamp(0, 255)", "pixels are cut off instead of rounded", "feed", "quality"),
    _own("diffcore/shards.py", '"shape", "classes", "members")', '"shape", "members")', "the data's digest does not cover the classes", "shards"),
    _own("diffcore/shards.py", "if hashlib.sha256(content).hexdigest() != shard.sha256:", "if not content:", "a shard's digest is not checked", "shards", "feed"),
    _own("diffcore/sources.py", "left, top = (width - size) // 2, (height - size) // 2", "left, top = 0, 0", "the crop is the corner, not the middle", "sources"),
    _own("diffcore/tars.py", 'if fortran or dtype.kind not in "iu":', "if fortran:", "an .npy may hold anything", "shards", "sources"),
    _own("diffcore/tars.py", "if size < 512:", "if size < 0:", "a tar that ends early is taken for whole", "shards", "sources"),
    _own("diffcore/checkpoint.py", "if disk.sha256(file) != digest:", "if False:", "a checkpoint's files are not checked", "checkpoint"),
    _own("diffcore/checkpoint.py", "if card.seal != card.sealed() or card.digest", "if card.digest", "a changed card is taken", "checkpoint"),
    _own("diffcore/checkpoint.py", '"timestep_spacing": "trailing"', '"timestep_spacing": "leading"', "diffusers would sample at other times", "checkpoint"),
    _own("diffcore/checkpoint.py", '"trained_betas": (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()', '"trained_betas": (1 - (alpha_bar[1:] / alpha_bar[:-1]).sqrt()).tolist()', "betas from alpha instead of alpha-bar", "checkpoint"),
    _own("diffcore/resume.py", 'if disk.sha256(tensors) != about["sha256"]:', "if False:", "a damaged state is used", "fit", "resume"),
    _own("diffcore/fit.py", "return self.lr * (step + 1) / self.warmup", "return self.lr * step / self.warmup", "the warm-up begins at 0", "fit"),
    _own("diffcore/fit.py", "list(net.parameters()), 1 - decay)", "list(net.parameters()), decay)", "averages move by decay, not by 1 - decay", "fit"),
    _own("diffcore/fit.py", "if not (math.isfinite(loss) and math.isfinite(norm)):", "if not math.isfinite(loss):", "a gradient that is not finite is followed", "fit"),
    _own("diffcore/fit.py", "loss = per.float().mean() / len(self.rows)", "loss = per.float().mean()", "parts of a batch are added, not averaged", "fit"),
    _own("diffcore/fit.py", 'found |= _moments("", self.net, self.optimizer)', "found |= {}", "a resumed run forgets the optimizer's moments", "fit"),
    _own("diffcore/fit.py", "self.critic.losses = facts[\"critic\"]", "self.critic.losses = []", "a resumed run forgets the critic's losses", "fit", "methods"),
    _own("diffcore/meter.py", "return 3 if learns", "return 2 if learns", "a backward pass counts as one call", "methods", "fit", "guided"),
    _own("diffcore/gamma.py", "variance = (self.square - self.total**2 / self.count) / (self.count - 1)", "variance = (self.square - self.total**2) / (self.count - 1)", "the spread over images is wrong", "gamma"),
    _own("diffcore/search.py", "before[first:last] = chosen + low + 1", "before[first:last] = chosen + low", "the search returns the node before the right one", "search"),
    _own("diffcore/search.py", "np.log1p((1 / sigma2[:, None] - 1 / sigma2[None, :]) * cov[None, :], where=upper, out=jumps)", "np.log1p((1 / sigma2[:, None] - 1 / sigma2[None, :]) * cov[:, None], where=upper, out=jumps)", "a jump costs by the covariance at its end", "search"),
    _own("diffcore/quality.py", "spread / (2 * rmse) if rmse", "spread / rmse if rmse", "the RMSE's error is twice too large", "quality"),
    _own("diffcore/frontier.py", "return no_worse and (self.nfe < other.nfe or self.fd < other.fd)", "return no_worse and self.nfe < other.nfe and self.fd < other.fd", "only what is better in both dominates", "frontier"),
    _own("diffcore/deepcache.py", "self.memory.full = self.call in self.full", "self.memory.full = self.call == 0", "a cache is never refreshed", "deepcache"),
    _own("diffcore/skip_tuning.py", "(deepest - place) / max(1, deepest)", "place / max(1, deepest)", "skips are scaled in the wrong order", "skip_tuning"),
    _own("diffcore/hops.py", "sums = strays + late * best[None, :]", "sums = late * strays + best[None, :]", "late hops weigh as much as early ones", "hops"),
    _own("diffcore/ode.py", "good = size <= 1", "good = size <= 100", "steps are accepted whose error is too large", "rk45"),
    _own("diffcore/solver.py", "return forward_variance(at, to) * to.sigma**2 / at.sigma**2", "return forward_variance(at, to) * at.sigma**2 / to.sigma**2", "the posterior's variance is upside down", "sde", "analytic", "solver"),
    _own("diffcore/methods/progressive.py", "(factor * i - j) / (factor * n)", "(factor * i - j) / (factor * n + 1)", "the student's times are not the grid's", "methods"),
    _own("diffcore/methods/consistency.py", "aim = compose(z, va, vb, phi_t - phi_u, phi_u)", "aim = compose(z, va, vb, phi_u, phi_t - phi_u)", "consistency's two hops swap lengths", "methods"),
    _own("diffcore/methods/consistency_training.py", "    levels[0] = 0.0\n", "", "the lowest level is not the data", "consistency_training"),
    _own("diffcore/methods/continuous.py", "- warmth * (cos * sin * z + change)", "+ warmth * (cos * sin * z + change)", "the tangent's second term has the wrong sign", "continuous"),
    _own("diffcore/methods/phased.py", "torch.div(k - 1, per_phase", "torch.div(k, per_phase", "an edge belongs to the phase above", "phased"),
    _own("diffcore/methods/distribution_matching.py", "aim = sample - (fake - real)", "aim = sample - (real - fake)", "samples are pushed away from the data", "distribution_matching"),
    _own("tasks/params.py", 'strict=True, extra="forbid")', 'strict=True, extra="ignore")', "an unknown key is passed over", "params"),
    _own("tasks/params.py", "if name in seen:\n            return True", "if name in seen:\n            return False", "a chain in a circle is not seen", "params"),
    _own("tasks/tracking.py", "return disk.digest([self.kind, self.name, self.content])", "return disk.digest([self.kind, self.name])", "changed results are taken for published", "tracking"),
    _own("flows/distill.py", "return isinstance(state.data, StageFailed)", "return True", "a mistake is tried again", "flows"),
    _own("flows/locks.py", "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)", "two may hold one lock", "flows"),
    _own("flows/locks.py", "if len(found) != 1:  # CUDA ignores this entry and all after it\n            break", "if len(found) != 1:  # CUDA ignores this entry and all after it\n            continue", "devices after a wrong entry are used", "flows"),
    _own("flows/leash.py", "return child.returncode if child.returncode >= 0 else 128 - child.returncode", "return max(child.returncode, 0)", "a killed command counts as well done", "flows"),
    _own("diffcore/quality.py", "rows = rows.double()", "rows = rows.float()", "moments are in float32", "quality"),
    _own("tasks/__main__.py", "file=sys.stderr)\n    return 2", "file=sys.stderr)\n    return 1", "a mistake has the exit code of a crash", "params", "stages"),
    _own("diffcore/disk.py", "    os.replace(temporary, path)", "    shutil.copyfile(temporary, path)", "a file is written over in place", "disk", "checkpoint"),
    _own("diffcore/tars.py", 'raise Mistake(f"{name} cannot be read as an uncompressed tar ({error}): fetch or write it again") from None', "pass", "a damaged tar is read as far as it goes, without a word", "shards", "sources"),
    _own("diffcore/feed.py", "return pixels.float() / 127.5 - 1", "return pixels.float() / 255", "images are in [0, 1]", "feed"),
)  # fmt: skip
"""Of other kinds, over all rooms."""

FAULTS = SURVIVORS + OWN
