"""Faults that tests must notice: where, the exact text, what it becomes, what that means, and which tests should see it.

A fault whose text is no longer found exactly once is refused aloud: write it again for the text as it is now.
"""

# ruff: noqa: E501

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """file: from the tree's root. old: its text, found once there. new: what is planted. means: in words. tests: files.

    marks: which of their tests, by pytest's marks.
    """

    group: str
    file: str
    old: str
    new: str
    means: str
    tests: tuple[str, ...]
    marks: str = "not slow and not server"


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


def _later(file: str, old: str, new: str, means: str, *tests: str, **how: str) -> Fault:
    return Fault("later", file, old, new, means, _paths(tests), **how)


def _third(file: str, old: str, new: str, means: str, *tests: str) -> Fault:
    return Fault("third", file, old, new, means, _paths(tests))


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

LATER = (
    _later("diffcore/adopt.py", 'settings.get("clip_sample", settings["_class_name"] in CLIPS)', 'settings.get("clip_sample", False)', "a scheduler that clips unless told otherwise is taken for one that does not", "adopt", "diffusers_samplers"),
    _later("diffcore/annotations.py", "return value.strip() or None", "return value.strip()", "an empty cell in the column of labels is a class of its own", "folders", "sources"),
    _later("diffcore/checkpoint.py", 'opened = {WEIGHTS, "unet/config.json", *(f"unet/{path.name}" for path in (folder / "unet").glob("*.safetensors*"))}', 'opened = {WEIGHTS, "unet/config.json"}', "weights laid beside those of the card, which diffusers would open, are let in", "checkpoint"),
    _later("diffcore/clipping.py", "torch.quantile(size, self.quantile, dim=1).clamp(1, self.max)", "torch.quantile(size, self.quantile).expand(len(x0)).clamp(1, self.max)", "a threshold is the whole batch's quantile, not each sample's", "clipping", "diffusers_samplers"),
    _later("diffcore/discriminator.py", '_start(layer, generator(seed, "critic", place))', '_start(layer, generator(seed, "critic"))', "all heads of a critic begin with the same weights", "discriminator", "phased"),
    _later("diffcore/disk.py", "os.fsync(opened.fileno())", "pass", "the files of a new folder are not safe on the disk when it takes its name", "disk", "checkpoint"),
    _later("diffcore/dropout.py", "input * self.kept(input) / (1 - self.p)", "input * self.kept(input)", "what dropout keeps is not scaled up", "dropout", "loop"),
    _later("diffcore/features.py", "return order[held_out:], order[:held_out]", "return order, order[:held_out]", "the judge is trained on the images that its accuracy is told of", "features", "quality"),
    _later("diffcore/fit.py", "        self._learning(False)\n", "", "the critic goes on gathering gradient in the student's own step", "fit", "loop", "phased", "distribution_matching"),
    _later("diffcore/folders.py", "    pictures += [Picture((name,), None, None, there=False) for name in absent]\n", "", "images that have a label and are missing are passed over in silence", "folders", "sources", "shards"),
    _later("diffcore/gamma.py", "keep(moments.so_far(start + config.batch))", "keep(moments.so_far(start))", "an estimate that goes on counts the last batch twice", "gamma", "evaluate"),
    _later("diffcore/hops.py", "beliefs[k] = belief if own else denoiser(x, per_sample(k / points, x))", "beliefs[k] = belief", "a student's times are fitted to its teacher's hops", "hops"),
    _later("diffcore/kept.py", 'disk.digest({"about": about, "torch": torch.__version__})', 'disk.digest({"about": about})', "results of another torch are taken for those of this one", "kept", "evaluate", "gamma"),
    _later("diffcore/ledger.py", "return [status.st_size, status.st_mtime_ns]", "return [status.st_size]", "a source changed to other bytes of the same length counts as unchanged", "ledger", "shards"),
    _later("diffcore/memory.py", "max(1, pixels >> 2 * level)", "max(1, pixels >> level)", "a level has half the pixels of the one above, not a quarter: small networks are refused", "bad_params", "params"),
    _later("diffcore/methods/consistency_training.py", "config.q ** -(stage + 1)", "config.q ** -stage", "ECT's gap is that of the stage before", "consistency_training", "methods"),
    _later("diffcore/methods/denoising.py", "error = lift(weight.sqrt(), z)", "error = lift(weight, z)", "the weight on the squared error is squared too", "methods", "loop"),
    _later("diffcore/methods/guided.py", 'truncated_snr(phi) if config.weight == "truncated_snr" else', 'truncated_snr(phi) if config.weight == "one" else', "the two weights of guided distillation are exchanged", "guided", "methods"),
    _later("diffcore/methods/phased.py", "renoise(landing, dice.noise, schedule.angle(s), schedule.angle(t))", "renoise(landing, dice.noise, s, t)", "times are taken for angles where the critic's images are noised", "phased", "loop"),
    _later("diffcore/nets/foreign.py", 'told["missing_keys"]', 'told["mismatched_keys"]', "weights that a file lacks begin at random without a word", "foreign", "adopt"),
    _later("diffcore/nets/unet.py", "sinusoids(label, self.features, self.shift, self.flip) * (weight != 0).any(0)", "sinusoids(label, self.features, self.shift, self.flip)", "the fast frequencies that were switched off come back in training", "unet", "continuous"),
    _later("diffcore/quality.py", "for first in range(0, count, ROWS)]", "for first in range(0, max(1, count // ROWS) * ROWS, ROWS)]", "kid leaves out the rows after the last whole tile", "quality"),
    _later("diffcore/recipe.py", 'if self.clip is not None or self.threshold is not None or checkpoint.card.method != "adopted":', 'if self.clip or self.threshold or checkpoint.card.method != "adopted":', "clip: false no longer turns off what an adopted teacher's scheduler does", "recipe", "adopt", "clipping"),
    _later("diffcore/resume.py", '.glob(f"{self.name}-*") if len(path.name) == len(self.folder.name)]', '.glob(f"{self.name}-*")]', "the states of jobs whose names begin alike are pruned as one job's", "resume", "fit"),
    _later("diffcore/sampler.py", "condition[rows.start : rows.stop]", "condition[: len(rows)]", "every batch of samples gets the first one's classes", "sampler", "condition"),
    _later("diffcore/schedule.py", "next(iter(self._copies.values())).to(like.device)", "next(iter(self._copies.values()))", "a table stays on the device where it was made", "schedule", "analytic"),
    _later("diffcore/shards.py", "if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE):", "if isinstance(error, MemoryError):", "images are quarantined for what the machine's disk or file table lacks", "shards", "bad_sources", "sources"),
    _later("diffcore/solvers/adaptive.py", "torch.where(keep, higher, x), torch.where(keep, lower, before)", "torch.where(keep, lower, x), torch.where(keep, lower, before)", "an adaptive step lands where its lower order does", "exponential_integrators", "solver"),
    _later("diffcore/solvers/analytic.py", "return (self.last * self._grey) ** 2 * math.pi / 2", "return (self.last * self._grey) ** 2 * 2 / math.pi", "the last step's noise is kept to 0.4 of the variance that its grey values allow", "analytic"),
    _later("diffcore/solvers/ancestral.py", "return posterior_variance(at, to), forward_variance(at, to)", "return forward_variance(at, to), posterior_variance(at, to)", "ddpm_large takes the small variance for its noise and the large one for its mean", "sde", "solver", "diffusers_samplers"),
    _later("diffcore/solvers/edm.py", "                at = raised\n", "", "a step of edm begins at the level below the noise that was just added", "sde", "solver"),
    _later("diffcore/solvers/langevin.py", "bar = bar + size / 2 * drift + size**0.5 * noise()", "bar = bar + size * drift + size**0.5 * noise()", "Langevin's drift is twice what its noise balances", "sde", "solver"),
    _later("diffcore/solvers/rk45.py", "z = x / size_at(schedule, ends[0])", "z = x", "rk45 integrates x where it should the rescaled z", "rk45", "solver"),
    _later("diffcore/solvers/unipc.py", "known = [(to, self._moved(found, x, to)), *known]", "known = [(to, found), *known]", "UniPC's next step begins at the predicted x, its correction is thrown away", "exponential_integrators", "orders", "solver", "diffusers_samplers"),
    _later("diffcore/sources.py", "deep = np.asarray(picture).astype(np.uint32)", "deep = np.asarray(picture)", "16-bit grey overflows on its way to 8 bits", "sources", "shards"),
    _later("diffcore/trajectory.py", "return min(80.0, noisiest), max(0.002, cleanest)", "return min(80.0, noisiest), min(0.002, cleanest)", "karras and logsnr end below both 0.002 and what t = 0.001 has", "trajectory", "solver"),
    _later("tasks/__main__.py", "        if code:\n", "        if code == 1:\n", "a stage that refuses with 2 or is stopped loses the outputs of its last good run", "machine", "surroundings"),
    _later("tasks/adopt.py", 'read | ({"sampling": found.sampling} if found.sampling else {})', "read", "the limits of an adopted teacher's scheduler are forgotten", "adopt", "recipe"),
    _later("tasks/alone.py", "from None\n        yield", "from None\n    yield", "the folder's lock is released before the work begins", "machine"),
    _later("tasks/database.py", "        disk.put(new, path)", "        path.write_bytes(new.read_bytes())", "an upgraded database is written over the old one in place", "database"),
    _later("tasks/dvc_environment.py", '(folder / SITE_CACHE / "repo").mkdir(', "(folder / SITE_CACHE).mkdir(", "DVC makes the folder of what it unpickles itself, writable for everybody", "dvc_environment"),
    _later("tasks/dvc_files.py", "if free and read(LOCK) is not None and not (KEPT", "if free and LOCK.exists() and not (KEPT", "a torn dvc.lock replaces the last whole copy", "machine"),
    _later("tasks/dvc_repro.py", "return MISTAKE if code and listener.codes == {MISTAKE} else code", "return MISTAKE if code else 0", "a crash has the exit code of a mistake", "dvc_repro", "machine", "flows"),
    _later("tasks/evaluate.py", '{**shared, "first": bench.about(plans[0])}', "shared", "kept points serve though what they are compared with has changed", "evaluate", "artifacts"),
    _later("tasks/evaluate.py", "shards.open_images(paths.HOLDOUT, memory)", "shards.open_images(paths.DATA, memory)", "floor and likelihood are of images that were trained on", "evaluate", "split"),
    _later("tasks/gamma.py", "labels=images.labels[chosen]", "labels=images.labels[: len(chosen)]", "the teacher is told other images' classes", "gamma", "evaluate", "split"),
    _later("tasks/inventory.py", "(parent.is_symlink() or not parent.is_dir())", "not parent.is_dir()", "a workspace's files are written through a link into somebody else's folder", "workspace"),
    _later("tasks/params.py", "and not (any_time and grid_of(found, students))", "", "a student that needs a teacher valid at any time learns from one with steps of its own", "params", "bad_params", "distribution_matching"),
    _later("tasks/params.py", "and 0 <= value < 1", "and 0 <= value <= 1", "a dropout of 1 is refused by no check: the stage crashes on it once all before it has run", "params", "bad_params", "dropout"),
    _later("tasks/redaction.py", "        yield from _forms(unquote(user), unquote(password))\n", "", "a password that stands encoded in an address is shown once it is decoded", "redaction", "tracking"),
    _later("tasks/report.py", ", preexec_fn=lifeline.die_with_parent)", ")", "DVC goes on after `run` was killed", "machine", "dvc_environment", "artifacts"),
    _later("tasks/sampler_model.py", "np.repeat(np.asarray(labels), each)", "np.resize(np.asarray(labels), count)", "a row's images are not all of the row's class", "tracking"),
    _later("tasks/search.py", "hops.strays(opened.denoiser, teacher.denoiser,", "hops.strays(teacher.denoiser, opened.denoiser,", "times are fitted to the teacher's hops on the student's path", "search", "hops", "evaluate"),
    _later("tasks/strict_yaml.py", "_count(open_nodes, sizes, None, sizes.get(anchor, 0))", "_count(open_nodes, sizes, None, 1)", "aliases that grow without measure are not refused", "params", "bad_params"),
    _later("tasks/tracking.py", 'for run in reversed(known) if run.info.status == "FINISHED"}', "for run in reversed(known)}", "a run whose publisher was killed is taken for published", "tracking"),
    _later("tasks/tracking.py", "now = int(time.time() * 1000)", "now = int(time.time())", "metrics are stamped in seconds where MLflow reads milliseconds", "tracking"),
    _later("tasks/tracking.py", "        if value is None:\n            os.environ.pop(name, None)\n        else:\n            os.environ[name] = value", "        if value is not None:\n            os.environ[name] = value", "MLflow's password stays in the environment after publishing", "tracking", "redaction"),
    _later("tasks/train.py", "guidance.cast(parent, weights, line.head, line.dropout)", "guidance.cast(parent, weights, line.head)", "the dropout of a student's line is not applied", "train", "dropout", "adopt"),
    _later("flows/distill.py", " or state.is_crashed()]", "]", "a run with a crashed stage counts as completed", "flows"),
    _later("flows/leash.py", ".children(recursive=True)", ".children()", "what a stage has started itself is left running", "flows"),
    _later("flows/locks.py", 'visible(listing.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))', 'visible(listing.stdout, os.environ.get("NVIDIA_VISIBLE_DEVICES"))', "GPUs that CUDA_VISIBLE_DEVICES leaves out are used", "flows"),
    _later("flows/running.py", "put(told(line.rstrip()))", "put(line.rstrip())", "a password in a command's output goes to the flow's log", "flows", "redaction"),
    _later("flows/services.py", "if abs(process.create_time() - self.born) < 1 and process.status()", "if process.status()", "a stranger with a recycled pid is taken for a service and ended", "flows"),
    _later("flows/stages.py", "{**dvc_environment.of(workspace), **(environment or {})}", "dvc_environment.of(workspace)", "a stage is not told the GPU of its slot", "flows", "dvc_environment", "dvc_repro"),
    _later("dvc.yaml", "params: [distill, evaluate, publish.tolerance]", "params: [distill, evaluate]", "another tolerance leaves the old recommendation", "stages", "graph"),
    _later("stage", '-m tasks "$@"', "-m tasks $*", "an argument with blanks falls apart", "surroundings", "stages"),
    _later("diffcore/fit.py", "                # outside of autocast, which would take what ran in full precision back in bfloat16\n                self.accelerator.backward(loss)\n", "                    self.accelerator.backward(loss)\n", "the backward pass runs under autocast", "precision", "loop"),
    _later("diffcore/fit.py", 'loss = float(self.accelerator.reduce(total, "mean"))\n        norm', 'loss = float(total)\n        norm', "each process tells its own loss", "two_processes", marks="not server"),
    _later("diffcore/fit.py", "self.rows = _rows(job.config, self.accelerator.process_index, self.accelerator.num_processes)", "self.rows = _rows(job.config, 0, self.accelerator.num_processes)", "every process trains on the same rows", "two_processes", marks="not server"),
    _later("diffcore/fit.py", "return self.calls_before + self.accelerator.num_processes * self.meter.spent", "return self.calls_before + self.meter.spent", "one process's calls are told as all", "two_processes", "fit", marks="not server"),
)  # fmt: skip
"""Chosen from the source alone, by people who had not read the tests."""

THIRD = (
    _third("diffcore/deepcache.py", "self.inner = self.inner.given(condition)", "self.inner = self.whole[0].inner.given(condition)", "with guidance every call of DeepCache runs the whole network and is told as a cached one", "deepcache", "condition", "recipe"),
    _third("diffcore/denoiser.py", "self.weighs, known, self.labels)", "self.weighs, known)", "a denoiser that is told a class or gets another network tells it times in 1024 steps, not in its own", "denoiser", "adopt", "condition", "skip_tuning", "loop"),
    _third("diffcore/frontier.py", '[p for p in self.points if key != "weights" or p.weights != GIVEN]', "[p for p in self.points if p.weights != GIVEN]", "an adopted teacher's point is compared though it has another n, seed or feature network", "frontier", "evaluate", "adopt"),
    _third("diffcore/likelihood.py", ".to(x0.device, x0.dtype)) / math.sqrt(probes)", ".to(x0.device, x0.dtype))", "the divergence is as many times too large as there are probes", "likelihood", "rk45", "evaluate"),
    _third("diffcore/ode.py", "-2187 / 6784", "-2178 / 6784", "the weights of rk45's solution add up to 1.0013: it is off by that whatever the tolerance", "rk45", "likelihood", "orders", "solver"),
    _third("diffcore/search.py", "return bool(falls and (np.diff(known.astype(int)) >= 0).all())", "return bool(falls)", "costs count as Monge though a covariance of 0 lies above one that is not", "search", "evaluate"),
    _third("diffcore/skip_tuning.py", "for scale, skip in zip(self.scales, skips)]", "for scale, skip in zip(self.scales[-len(skips) :], skips)]", "DeepCache's cached calls scale the finest skips as the deepest ones", "skip_tuning", "deepcache", "recipe"),
    _third("diffcore/tars.py", "Image.open(io.BytesIO(content), formats=guesses)", "Image.open(io.BytesIO(content))", "an EPS that is called .png is handed to Ghostscript: any decoder of Pillow is let near a file", "sources", "shards", "bad_sources", "pictures"),
    _third("diffcore/recipe.py", "if value not in (None, {})}", "if value}", "a recipe forgets negative 0, guidance 0 and clip false when it is written down", "recipe", "evaluate", "adopt", "clipping"),
    _third("diffcore/quality.py", "right = (known[found] == labels.cpu()).double()", "right = (found == labels.cpu()).double()", "where a class has no images the accuracy compares with the number of another class", "quality", "evaluate", "features"),
    _third("diffcore/gamma.py", 'range(first, first + m), "gamma")', 'range(m), "gamma")', "the images of a worker's part get the noise of the first images", "gamma", "analytic", "evaluate"),
    _third("diffcore/hops.py", "return (guide if denoiser is teacher else denoiser.given(known)), guide", "return (guide if denoiser is teacher else denoiser), guide", "a student's hops are those of no class, beside its teacher's path to one", "hops", "condition", "search", "evaluate"),
    _third("diffcore/adopt.py", "list(self.classes) != list(classes or ())", "set(self.classes) != set(classes or ())", "a teacher is taken whose classes are the data's in another order: its labels mean other classes", "adopt", "params", "bad_params"),
    _third("diffcore/annotations.py", r'r"-?\d{1,9}(\.0+)?"', r'r"-?\d{1,9}(\.\d+)?"', "labels such as 1.2 and 1.7 are cut off to the one class 1", "folders", "sources", "bad_sources"),
    _third("diffcore/folders.py", "parts[depth].lower() in splits for parts in images)", "parts[depth] in splits for parts in images)", "Train/ and Test/ are read as two classes, as they begin with a capital", "folders", "split", "sources"),
    _third("diffcore/sources.py", "[labels[row] for row in rows]", "list(labels)[: len(rows)]", "images of a block of which some are held out get the labels of its first ones", "split", "sources", "shards"),
    _third("diffcore/ledger.py", "[[os.fsencode(path).hex(), *_status(path)] for path in files]", "[_status(path) for path in files]", "images that were renamed or moved to another class count as unchanged when a writer goes on", "ledger", "shards"),
    _third("diffcore/fit.py", '"critic", step, number, count=self.job.config.batch)', '"critic", step, count=self.job.config.batch)', "all of the critic's updates in a step see the same noise", "distribution_matching", "phased", "fit", "loop"),
    _third("diffcore/schedule.py", "place.detach().ceil().long().clamp(1, len(self.betas))", "(place.detach().floor().long() + 1).clamp(1, len(self.betas))", "a discrete schedule's slope at step n is that of the step above", "schedule", "process", "sde"),
    _third("diffcore/angle.py", "compose(z, whole, last, phi[0] - phi[j], phi[j] - phi[j + 1])", "compose(z, whole, last, phi[j - 1] - phi[j], phi[j] - phi[j + 1])", "three and more hops are folded as if all before the last were as long as one", "angle", "methods"),
    _third("diffcore/meter.py", "Metered(self.inner.of(rows), self.meter, self.learns)", "Metered(self.inner.of(rows), self.meter)", "the student's backward passes are not counted once its batch is taken in parts", "fit", "loop", "methods", "guided"),
    _third("diffcore/nets/unet.py", "F.pad(h, (0, 1, 0, 1))", "F.pad(h, (1, 0, 1, 0))", "with downsample_padding 0 the zeros stand at the near edges: published networks see the image shifted", "unet", "foreign", "adopt"),
    _third("diffcore/nets/foreign.py", "kind.from_pretrained(folder, use_safetensors=True, local_files_only=True,", "kind.from_pretrained(folder, local_files_only=True,", "pickled weights are opened where any other safetensors lie beside them", "foreign", "adopt", "checkpoint"),
    _third("diffcore/methods/consistency.py", "min(progress / config.anneal, 1) * (last - first)", "progress / config.anneal * (last - first)", "the grid goes on growing beyond steps_end", "methods", "loop"),
    _third("diffcore/methods/distribution_matching.py", "return known if roles.condition is None else known.given(roles.condition)", "return known", "the critic is not told the classes of the samples that it judges", "distribution_matching", "condition", "loop"),
    _third("diffcore/methods/phased.py", "t = s + dice.u / config.phases", "t = s + dice.u / config.steps", "the critic's images are noised within one of the teacher's steps, not within a phase", "phased", "discriminator", "methods"),
    _third("diffcore/methods/consistency_training.py", "math.ceil(math.log2(config.last / config.first)) + 1", "math.ceil(math.log2(config.last / config.first))", "iCT's grid never grows to its last count", "consistency_training", "methods"),
    _third("diffcore/solvers/adaptive.py", "lift(weight * place / where, change)", "lift(weight / where, change)", "the second look of dpm_solver_23 is reached by a bend half too large", "exponential_integrators", "orders", "solver"),
    _third("diffcore/solvers/analytic.py", "gamma.covariance(self.estimator, within=within).values", "gamma.covariance(self.estimator).values", "covariances of data with another range are cut off at that of [-1, 1]", "analytic", "gamma", "likelihood"),
    _third("diffcore/solvers/ancestral.py", "self.eta**2 * posterior_variance(at, to)", "self.eta * posterior_variance(at, to)", "ddim with eta between 0 and 1 adds too much noise", "sde", "solver", "diffusers_samplers", "likelihood"),
    _third("diffcore/solvers/dpm_solver.py", "1 - mixed / (2 * h)", "1 - mixed / h", "dpmpp_2m_sde's heun type has the wrong weight on the second order", "sde", "orders", "diffusers_samplers", "exponential_integrators"),
    _third("tasks/adopt.py", "    found.check(manifest.shape, manifest.classes)\n", "", "an adopted teacher is not asked whether it fits the images' shape and classes", "adopt", "foreign", "bad_params"),
    _third("tasks/alone.py", 'LOCK = Path(".dvc/tmp/flow.lock")', 'LOCK = Path(".dvc/tmp/run.lock")', "`run` and a flow no longer keep out of each other's way", "machine", "flows"),
    _third("tasks/dvc_files.py", r'HALF_MADE = re.compile(r"\.[\w-]{22}\.tmp", re.ASCII)', r'HALF_MADE = re.compile(r"\..+\.tmp", re.ASCII)', "hidden .tmp files of others beside an output are deleted as DVC's own, those being written among them", "machine", "dvc_repro", "artifacts"),
    _third("tasks/dvc_repro.py", '["--wait-for-lock", "repro", *arguments]', '["repro", *arguments]', "a stage fails if another DVC holds the lock at that moment, it does not wait", "dvc_repro", "machine", "flows"),
    _third("tasks/evaluate.py", "for steps in sorted(way.steps, reverse=True) or [grid.steps]:", "for steps in sorted(way.steps) or [grid.steps]:", "fidelity compares with the teacher's fewest steps, not its most", "evaluate", "frontier", "artifacts"),
    _third("tasks/features.py", "shards.open_images(paths.DATA, params.compute.memory_bytes)", "shards.open_images(paths.HOLDOUT if paths.HOLDOUT.exists() else paths.DATA, params.compute.memory_bytes)", "the judge is trained on the images that were held out of all training", "features", "split", "evaluate"),
    _third("tasks/gamma.py", "return found / (len(images) * math.prod(images.shape))", "return found / (len(images) * math.prod(images.shape[1:]))", "the share of values at the ends is three times too large for colour", "gamma", "search", "split"),
    _third("tasks/graph.py", 'if wrong := sorted(set(body["outs"]) ^ WRITES[stage]):', 'if wrong := sorted(set(body["outs"]) - WRITES[stage]):', "a graph whose stage is not said to write one of its outputs is taken", "graph", "stages", "machine"),
    _third("tasks/guidance.py", "Guided(own) if weights is not None and known is None else own", "Guided(own) if weights is not None and not own.weighs else own", "a teacher with one weight built in is guided once more", "dropout", "guided", "condition", "train"),
    _third("tasks/inventory.py", 'return bool(path.parts) and not path.is_absolute() and ".." not in path.parts', "return bool(path.parts) and not path.is_absolute()", "an inventory may name files outside its folder, which are then replaced or removed", "workspace", "machine"),
    _third("tasks/params.py", "asked = known is not None or way.guidance is not None", "asked = way.guidance is not None", "fitted times for a student with guidance built in are refused only once all is trained", "params", "bad_params", "guided"),
    _third("tasks/pictures.py", 'shown = [point for point in points if point["best"]]', "shown = list(points)", "a curve has all tries, not the best of each", "pictures", "tracking", "frontier", "artifacts"),
    _third("tasks/redaction.py", "sorted(_secrets(), key=len, reverse=True)", "sorted(_secrets(), key=len)", "of a password that begins as a shorter one does, the rest is shown", "redaction", "tracking", "flows"),
    _third("tasks/report.py", '_repro("--force", "--single-item", "publish")', '_repro("--single-item", "publish")', "what MLflow has lost is not published again: DVC finds the receipt unchanged", "machine", "tracking", "database", "artifacts"),
    _third("tasks/search.py", "config, opened.shape, condition=condition)", "config, opened.shape)", "times are fitted to the path of no class where the teacher is conditional", "evaluate", "search", "hops", "condition"),
    _third("tasks/strict_yaml.py", "isinstance(value, float) and not math.isfinite(value)", "isinstance(value, float) and math.isnan(value)", "infinite numbers are taken", "params", "bad_params", "workspace"),
    _third("tasks/tracking.py", '{"digest": "checkpoint_digest", "recipe": "recipe", "trajectory": "trajectory", "nfe": "nfe"}', '{"digest": "checkpoint_digest", "trajectory": "trajectory", "nfe": "nfe"}', "`challenger` stays on the version with another sampler, if that took as many calls", "tracking", "artifacts"),
    _third("tasks/train.py", '"parameters": {**parameters, "flip": params.data.flip},', '"parameters": parameters,', "a killed training goes on though data.flip is another since, and no card tells of it", "train", "resume", "checkpoint", "fit"),
    _third("tasks/workspace.py", '    params.parse(raw, f"the parameters of {target}")\n', "", "a workspace is made with parameters that its own stages refuse", "workspace", "bad_params", "params"),
    _third("tasks/__main__.py", 'print(f"error: {redaction.told(line)}", file=sys.stderr)', 'print(f"error: {line}", file=sys.stderr)', "a mistake's line may show a password", "redaction", "surroundings", "machine", "tracking"),
    _third("flows/distill.py", "slot.environment, keep=[descriptor])", "slot.environment)", "a slot is free for others as soon as its flow is killed, while its stage still runs there", "flows", "machine"),
    _third("flows/leash.py", "while time.monotonic() < until and (child.poll() is None or _below(os.getpid())):", "while time.monotonic() < until and child.poll() is None:", "what outlives the command is killed at once, without the grace to save", "flows", "machine"),
    _third("flows/locks.py", 'Slot(place / f"distill-{name}.lock", {"CUDA_VISIBLE_DEVICES": name})', 'Slot(folder / f"distill-{name}.lock", {"CUDA_VISIBLE_DEVICES": name})', "the runs of two workspaces use one GPU at the same time", "flows", "machine"),
    _third("flows/running.py", "{**surroundings(), **(environment or {})}", "{**(environment or {}), **surroundings()}", "where CUDA_VISIBLE_DEVICES is set already, a stage sees all its GPUs and not its slot's", "flows", "dvc_environment", "dvc_repro"),
    _third("flows/services.py", 'profiles[active] = {**profiles[active], "PREFECT_API_URL": api}', 'profiles[active] = {"PREFECT_API_URL": api}', "what a person has set in the Prefect profile is lost at each `up`", "flows", "surroundings"),
    _third("flows/stages.py", "repo.status(targets=[f\"{workspace / (file or 'dvc.yaml')}:{stage}\"])", "repo.status(targets=[name])", "a stage counts as up to date if it is in the current directory, whatever the workspace", "flows", "stages"),
    _third("dvc.yaml", "      - artifacts/published.json:  # a receipt of this machine's MLflow: never restored from a cache\n          cache: false", "      - artifacts/published.json", "an earlier receipt is restored from DVC's cache instead of publishing", "stages", "graph", "machine", "artifacts"),
    _third("diffcore/disk.py", "    except (OSError, OverflowError):  # another user's\n        return True", "    except (OSError, OverflowError):  # another user's\n        return False", "what another user's living process is writing is cleared away as a dead one's", "disk", "checkpoint", "machine"),
    _third("diffcore/resume.py", 'self.folder / f"step-{step:09d}"', 'self.folder / f"step-{step}"', "step 999 counts as newer than step 1000: the newest state is pruned, an old one goes on", "resume", "fit", "loop", "train"),
    _third("diffcore/kept.py", 'if hashlib.sha256(content).hexdigest() != found["sha256"]:', "if not content:", "damaged tensors of a kept result are used", "kept", "evaluate", "gamma"),
    _third("diffcore/ledger.py", 'for shard in state["shards"])', 'for shard in state["shards"][-1:])', "of the finished tars only the last one is verified", "ledger", "shards", "bad_sources"),
    _third("diffcore/checkpoint.py", "        check_finite(tensors, f\"the network {about['name']}\", \"lower its learning rate and train it again\")\n", "", "a network of NaN is saved as a checkpoint, in the place of the last good one", "checkpoint", "train", "fit"),
)  # fmt: skip
"""The same once more, after the survivors of those had been met with tests."""

FAULTS = SURVIVORS + OWN + LATER + THIRD
